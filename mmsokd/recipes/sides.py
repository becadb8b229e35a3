"""The two sides of a distillation as a user names them: a config, its model, and what it was made for."""

from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmsokd.distillers.build import build_model, load_config
from mmsokd.distillers.face import Face
from mmsokd.recipes.anatomy import LIBRARIES, stages, task_of
from mmsokd.recipes.survey import Survey

PROBE_SIZES = (256, 224, 384, 64, 32)  # the distiller's own first; some networks take one size alone


class Side(NamedTuple):
    """A plain model's config and what was built of it.

    Attributes:
        key: ``'student'`` or ``'teacher'``, for messages.
        source: as the user wrote it.
        cfg: the whole config, in the text style.
        model: its model, without weights.
        task: what it does.
        new_style: whether its file is in the new style (with ``read_base()``), which no text can take as its base.
    """

    key: str
    source: str
    cfg: Config
    model: nn.Module
    task: str
    new_style: bool = False

    @property
    def name(self) -> str:
        """Of the model's class."""
        return type(self.model).__name__

    @property
    def parameters(self) -> int:
        """How many it has."""
        return sum(p.numel() for p in self.model.parameters())


def read_side(key: str, source: str) -> Side:
    """Read a plain config and build its model.

    Raises:
        FileNotFoundError, TypeError, ValueError: there is no such config, it has no model, a distiller's, or one of
            another library.
    """
    cfg = load_config(key, source)
    new_style = '::' not in source and Config._is_lazy_import(source)
    if new_style:
        cfg = Config.fromstring(cfg.pretty_text, '.py')  # names in place of classes
    if not isinstance(cfg.get('model'), dict) or 'type' not in cfg.model:
        raise ValueError(f'{key}: expected a config with a model, found none in {source!r}: is it a part of one?')
    _check_plain(key, source, cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = build_model(key, cfg)
    task = task_of(model)
    if task is None:
        raise ValueError(
            f'{key}: expected a model of {", ".join(LIBRARIES)}, or one derived from theirs, found '
            f'{type(model).__module__}.{type(model).__name__} in {source!r}; for others write the config by hand: '
            'docs/get_started.md'
        )
    return Side(key, source, cfg, model, task, new_style)


def _check_plain(key: str, source: str, cfg: Config) -> None:
    kind = cfg.model.type
    cls = ROOT_MODELS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(cls, type) and issubclass(cls, Face)):
        return
    trained = cls.trains
    inner = cfg.model.get(trained)
    inside = f", whose {trained} is a '{inner['type']}'" if isinstance(inner, dict) and 'type' in inner else ''
    raise ValueError(
        f"{key}: expected a plain model's config, found a {cls.__name__}'s in {source!r}{inside}; give the config that "
        f"the {trained} had before, with its weights from 'tools/export_student.py CHECKPOINT OUT --part {trained}'"
    )


def check_pair(student: Side, teacher: Side) -> None:
    """Raise ValueError unless both do the same task."""
    if student.task != teacher.task:
        raise ValueError(
            f'expected two models of one task, found {student.name} for {student.task} as student and {teacher.name} '
            f'for {teacher.task} as teacher'
        )


def survey_sides(sides: list[Side], size: int | None = None) -> list[Survey]:
    """Dry-run the models on pictures of one size: ``size``, or the first of :data:`PROBE_SIZES` that suits all.

    A transformer may take a size that its patches do not divide, and then has no map anywhere.

    Raises:
        ValueError: there is none; tells what went wrong at the first.
    """
    sizes = PROBE_SIZES if size is None else (size,)
    first = found = None
    for side in sizes:
        try:
            with DefaultScope.overwrite_default_scope(sides[0].cfg.get('default_scope')):
                surveys = [Survey(s.model, side) for s in sides]
            found = found or surveys
            if all(stages(survey) for survey in surveys):
                return surveys
        except ValueError as error:
            first = first or error
    if found is not None:
        return found
    others = f' (nor on pictures of {", ".join(map(str, sizes[1:]))})' if size is None else ''
    raise ValueError(f"{first}{others}; give the side that the models take by '--probe-size'")


def classes_of(cfg: Config) -> list[str] | None:
    """The names of the classes that a config's training set has; None where they are not to be known."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset or dataset.get('datasets'):  # wrappers
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    found = (dataset.get('metainfo') or {}).get('classes')
    if found is None and 'type' in dataset:
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            cls = registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
        found = (getattr(cls, 'METAINFO', None) or {}).get('classes')
    return [str(name) for name in found] if isinstance(found, list | tuple) else None


def check_classes(key: str, student: Side, teacher: Side) -> None:
    """Raise ValueError where the names of the classes are known, and differ: logits are compared one by one."""
    ours, theirs = classes_of(student.cfg), classes_of(teacher.cfg)
    if ours is None or theirs is None or ours == theirs:
        return
    pairs = zip(ours, theirs, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    names = [f'{classes[place]!r}' if place < len(classes) else 'none' for classes in (ours, theirs)]
    raise ValueError(
        f'{key}: expected a student and a teacher of the same classes in the same order, since it compares logits, '
        f'found {len(ours)} and {len(theirs)} (class {place} is {names[0]} and {names[1]}); take a method on '
        'features, such as fitnet, which does not look at classes'
    )


def count_pictures(key: str, cfg: Config) -> int:
    """How many pictures the training set has; it is built for that.

    Raises:
        ValueError: it cannot be.
    """
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            return len(DATASETS.build(cfg.train_dataloader.dataset))
    except Exception as error:  # it may be anything
        raise ValueError(
            f'{key}: expected a training set whose pictures can be counted, since it remembers each of them, found: '
            f'{error}'
        ) from error
