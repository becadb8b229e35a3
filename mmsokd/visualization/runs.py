"""What a training has left in its work dir: MMEngine's logs, and ours, of one run however often it was resumed."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

Row = dict[str, Any]

_END_OF_PNG = b'IEND\xaeB`\x82'
_CLOCK = {'iter', 'epoch', 'step', 'time', 'data_time', 'memory'}  # what a row has beside what was measured
# The names that MMEngine's CheckpointHook knows, most telling first; what is looked for is a part of the name.
_TELLING = ('bbox_mAP', 'mAP', 'mIoU', 'accuracy/top1', 'acc', 'AR@', 'PQ', 'mDice')


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        folder: its work dir.
        config: as it was when the run was last started.
        train: the log's rows by iteration, each iteration once.
        val: the rows of the validations, ``step`` counts :attr:`val_unit`.
        test: the metrics of the last test in this work dir.
        policy: the lines of ``policy.json`` by iteration.
        drawings: the pictures of the areas, by iteration.
        environment: what MMEngine told of the machine, the libraries and the seed.
        starts: how often it was started; once more than it was resumed.
        earlier: how many folders of runs before it, which it did not go on with, are left out.
    """

    folder: Path
    config: Config
    train: list[Row]
    val: list[Row]
    test: Row
    policy: list[Row]
    drawings: dict[int, list[Path]]
    environment: dict[str, str]
    starts: int
    earlier: int

    @property
    def name(self) -> str:
        """Of the work dir."""
        return self.folder.resolve().name

    @property
    def val_unit(self) -> str:
        """What ``step`` of :attr:`val` counts."""
        logger = self.config.get('default_hooks', {}).get('logger') or {}
        return 'epoch' if logger.get('log_metric_by_epoch', True) else 'iteration'

    @property
    def iterations(self) -> int:
        """The last iteration in the log."""
        return self.train[-1]['iter'] if self.train else 0

    def values(self, key: str) -> tuple[list[int], list[float]]:
        """A column of :attr:`train`: iterations and values."""
        rows = [row for row in self.train if _is_number(row.get(key))]
        return [row['iter'] for row in rows], [float(row[key]) for row in rows]

    def metric(self, key: str) -> tuple[list[int], list[float]]:
        """A column of :attr:`val`: steps and values."""
        rows = [row for row in self.val if _is_number(row.get(key))]
        return [row['step'] for row in rows], [float(row[key]) for row in rows]

    @property
    def keys(self) -> list[str]:
        """What the training logged, in the order in which it came up."""
        return _keys(self.train)

    @property
    def losses(self) -> list[str]:
        """The terms of the loss, without their sum."""
        return [key for key in self.keys if 'loss' in key and key != 'loss']

    @property
    def metrics(self) -> list[str]:
        """What the validations measured, the most telling one first."""
        keys = _keys(self.val)
        best = main_metric(keys, self.config)
        return [best, *(key for key in keys if key != best)] if best else []

    def median(self, key: str) -> float | None:
        """Of a column of :attr:`train`."""
        values = self.values(key)[1]
        return statistics.median(values) if values else None

    @property
    def seconds(self) -> float | None:
        """About how long the iterations took, from the logged time of one: without validating and saving."""
        steps, times = self.values('time')
        if not steps:
            return None
        before = [0, *steps[:-1]]
        return sum((now - then) * time for now, then, time in zip(steps, before, times, strict=True))

    @property
    def planned(self) -> tuple[int | None, str]:
        """How long the run was meant to be, and in what unit."""
        loop = self.config.get('train_cfg') or {}
        for key, unit in (('max_epochs', 'epoch'), ('max_iters', 'iteration')):
            if _is_number(loop.get(key)):
                return int(loop[key]), unit
        return None, 'iteration'

    @property
    def reached(self) -> int:
        """How far the run came, in the unit of :attr:`planned`: as the log, the validations and the checkpoint tell."""
        unit = self.planned[1]
        logged = [row['iter' if unit == 'iteration' else 'epoch'] for row in self.train[-1:] if 'epoch' in row]
        logged = [self.iterations] if unit == 'iteration' else logged
        validated = [row['step'] for row in self.val[-1:] if unit == self.val_unit]
        return max([*logged, *validated, 0])

    @property
    def is_finished(self) -> bool:
        """Whether there is a checkpoint of the planned end, and the log comes up to it."""
        planned, unit = self.planned
        pointer = self.folder / 'last_checkpoint'
        last = Path(pointer.read_text().strip()).stem if pointer.is_file() else ''
        saved = re.fullmatch(r'(?:epoch|iter)_(\d+)', last)
        if planned is None or saved is None or int(saved[1]) < planned:
            return False
        logger = self.config.get('default_hooks', {}).get('logger') or {}
        missing = logger.get('interval', 10) - 1 if unit == 'iteration' else 0  # of which no line tells
        return self.reached >= planned - missing

    @property
    def batch_size(self) -> int | None:
        """Pictures an iteration, over all processes."""
        size = (self.config.get('train_dataloader') or {}).get('batch_size')
        processes = self.environment.get('GPU number', '1')
        return size * int(processes) if _is_number(size) and processes.isdigit() else None


def main_metric(keys: Iterable[str], config: Mapping) -> str | None:
    """The metric by which the config keeps the best checkpoint, or else the most telling name."""
    keys = list(keys)
    best = (config.get('default_hooks', {}).get('checkpoint') or {}).get('save_best')
    best = best[0] if isinstance(best, list | tuple) and best else best
    if best in keys:
        return best
    found = (key for part in _TELLING for key in keys if part in key)
    return next(found, keys[0] if keys else None)


def is_less_better(key: str) -> bool:
    """Whether a metric is better the smaller it is; by its name."""
    return any(part in key.lower() for part in ('loss', 'error', 'mae', 'mse'))


def best_of(key: str, values: Iterable[float]) -> float:
    """The best of a metric's values."""
    return min(values) if is_less_better(key) else max(values)


def read_run(folder: str | Path) -> Run:
    """Read a work dir.

    Folders of MMEngine's runs lie in it by the time of their start. The last one, and those before it that it went on
    with (``resume``), are one run: where a later one repeats iterations, the earlier one's are left out.

    Raises:
        ValueError: it is no work dir of a training, or its log has no scalars; says what was found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'work dir: expected a folder that a training has written, found none at {str(folder)!r}')
    found = sorted(path.parent.parent for path in folder.glob('*/vis_data/scalars.json'))
    if not found:
        raise ValueError(_nothing_found(folder))
    configs = {part: _read_config(part) for part in found}
    begin = max((i for i, part in enumerate(found) if configs[part] and not configs[part].get('resume')), default=0)
    parts = found[begin:]
    train, val = _join([_read_rows(part / 'vis_data' / 'scalars.json') for part in parts])
    if not train and not val:
        raise ValueError(
            f'work dir: expected rows of losses or metrics in {parts[-1] / "vis_data" / "scalars.json"}, found none; '
            'has the run come to its first log line (default_hooks.logger.interval)?'
        )
    return Run(
        folder=folder,
        config=configs[parts[-1]],
        train=train,
        val=val,
        test=_read_test(folder),
        policy=_cut([_read_lines(part / 'vis_data' / 'policy.json') for part in parts]),
        drawings=_find_drawings(parts),
        environment=_read_environment(parts[-1]),
        starts=len(parts),
        earlier=begin,
    )


def _nothing_found(folder: Path) -> str:
    if (folder / 'vis_data').is_dir():
        return (
            f"work dir: expected the folder that holds the runs' folders, found one run's, {str(folder)!r}; give "
            f'{str(folder.parent)!r}'
        )
    inside = sorted(path.parents[2].name for path in folder.glob('*/*/vis_data/scalars.json'))
    hint = f'; there are such ones in it: {sorted(set(inside))}' if inside else ''
    others = sorted(folder.glob('*/vis_data'))
    if others and not hint:
        hint = f"; {others[-1].name} has other logs only: the visualizer needs dict(type='LocalVisBackend')"
    return (
        f'work dir: expected the folder of a training, with <time>/vis_data/scalars.json in it, found none in '
        f'{str(folder)!r}{hint}'
    )


def _read_lines(path: Path) -> list[Row]:
    """The JSON objects of a file, one a line; what a kill has left of a line is no object."""
    rows = []
    for line in path.read_text(errors='replace').splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _read_rows(path: Path) -> list[Row]:
    """MMEngine's rows, without the ``train/`` and ``val/`` that ``log_with_hierarchy`` puts before the names."""
    rows = []
    for row in _read_lines(path):
        row = {re.sub(r'^(train|val)/', '', key): value for key, value in row.items()}
        if 'iter' in row or _is_number(row.get('step')):  # others are somebody's own
            rows.append(row)
    return rows


def _join(parts: list[list[Row]]) -> tuple[list[Row], list[Row]]:
    """The rows of the training and of its validations, of which those that a later part repeats are left out."""
    rows: list[Row] = []
    for part in parts:
        first = next((row['iter'] for row in part if 'iter' in row), None)
        if first is not None:
            cut = next((i for i, row in enumerate(rows) if row.get('iter', -1) >= first), len(rows))
            rows = rows[:cut]
        rows = rows + part
    train = {row['iter']: row for row in rows if 'iter' in row}
    val = {row['step']: row for row in rows if 'iter' not in row}
    return [train[i] for i in sorted(train)], [val[i] for i in sorted(val)]


def _cut(parts: list[list[Row]]) -> list[Row]:
    """Lines with ``iter``; of each part those before the first one of the next."""
    lines: list[Row] = []
    for part in parts:
        part = [line for line in part if _is_number(line.get('iter'))]
        first = part[0]['iter'] if part else None
        lines = [line for line in lines if first is None or line['iter'] < first] + part
    return lines


def _read_config(part: Path) -> Config:
    path = part / 'vis_data' / 'config.py'
    if not path.is_file():
        return Config()
    try:
        return Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # it may be anything
        raise ValueError(f'work dir: expected the config that MMEngine wrote in {path}: {error}') from error


def _read_test(folder: Path) -> Row:
    """What MMEngine's LoggerHook leaves of a test: ``<time>/<time>.json``."""
    for path in sorted(folder.glob('*/*.json'), reverse=True):
        if path.stem == path.parent.name:
            rows = _read_lines(path)
            if rows:
                return {k: v for k, v in rows[-1].items() if _is_number(v) and k not in _CLOCK}
    return {}


def _find_drawings(parts: list[Path]) -> dict[int, list[Path]]:
    """Iteration -> the pictures that DAMHook drew there; not what a later part has gone back behind, and none that a
    kill has cut off.
    """
    found: dict[int, dict[str, Path]] = {}
    for part in parts:
        first = next((row['iter'] for row in _read_rows(part / 'vis_data' / 'scalars.json') if 'iter' in row), None)
        found = {iteration: paths for iteration, paths in found.items() if first is None or iteration < first}
        for path in sorted((part / 'vis_data' / 'vis_image').glob('areas_*.png')):
            name, _, iteration = path.stem.rpartition('_')
            if iteration.isdigit() and path.read_bytes().endswith(_END_OF_PNG):
                found.setdefault(int(iteration), {})[name] = path
    return {iteration: [found[iteration][name] for name in sorted(found[iteration])] for iteration in sorted(found)}


def _read_environment(part: Path) -> dict[str, str]:
    """The block that MMEngine's Runner logs at its start; nothing where ``log_level`` is above INFO."""
    path = part / f'{part.name}.log'
    text = path.read_text(errors='replace') if path.is_file() else ''
    block = re.search(r'^System environment:\n(.*?)^-{20,}$', text, re.M | re.S)
    lines = re.findall(r'^    ([^\s:][^:\n]*): (.*)$', block[1], re.M) if block else []
    return {key: value.strip() for key, value in lines}


def _keys(rows: list[Row]) -> list[str]:
    return list(
        dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value) and key not in _CLOCK)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
