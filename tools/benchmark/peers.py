"""Compare our distiller's steps with MMRazor's, on the same networks, weights, batch and host.

pip install --no-deps --target /tmp/peer mmrazor==1.0.0 joblib cloudpickle dill ordered_set
python tools/benchmark/peers.py --mmrazor /tmp/peer --side 256 --batch-size 2 --rounds 5

RetinaNet, ResNet-101 -> ResNet-18, the whole pyramid tapped on both sides, all in turns in one process. MMRazor is
needed for this alone: it is not among mmsokd's requirements.
"""

import argparse
import copy
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _cases import CONFIGS, Teaching, Training, add_sizes, build, load, searching_step, student_alone
from _measure import MIB, Spread, Variant, add_rounds, clock_name, markdown, memory, ratios, times, write
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

LEVELS = 5
# Ours by config; MMRazor's loss of the same formula and weight, and the names of its arguments.
HOSTS: dict[str, tuple[dict, tuple[str, str]]] = {
    'pkd': (dict(type='PKDLoss', loss_weight=10.0), ('preds_S', 'preds_T')),
    'cwd': (dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=10.0), ('preds_S', 'preds_T')),
    'fitnet': (dict(type='L2Loss', normalize=False, div_element=True), ('s_feature', 't_feature')),
}
PEERS = ('SingleTeacherDistill', 'FpnTeacherDistill')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--host', nargs='+', choices=[*HOSTS], default=[*HOSTS])
    parser.add_argument('--mmrazor', type=Path, help='the folder that it was installed into, if not among the others')
    parser.add_argument('--memory-rounds', type=int, default=2, help='runs of each whose memory is looked at')
    add_sizes(parser)
    add_rounds(parser)
    parser.set_defaults(side=800, batch_size=4)
    return parser.parse_args()


@contextmanager
def old_torch() -> Iterator[None]:
    """While MMRazor 1.0.0 is imported: for a newer PyTorch it looks for quantisation code that is no longer there."""
    version = torch.__version__
    torch.__version__ = '1.12.0'
    try:
        yield
    finally:
        torch.__version__ = version


def import_mmrazor(folder: Path | None) -> None:
    """Register its models.

    Raises:
        SystemExit: it is not there.
    """
    if folder is not None:
        sys.path.append(str(folder))
    try:
        with old_torch():
            import mmrazor.models  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f'mmrazor: expected version 1.0.0, found that it cannot be imported ({error}); '
            'pip install --no-deps --target FOLDER mmrazor==1.0.0 joblib cloudpickle dill ordered_set; --mmrazor FOLDER'
        ) from error


def peer(kind: str, host: str, student: nn.Module, teacher: nn.Module) -> nn.Module:
    """MMRazor's algorithm around copies of both networks."""
    loss, (ours, theirs) = HOSTS[host]
    names = [f'loss_{host}_{i}' for i in range(LEVELS)]
    recorder = dict(fpn=dict(type='ModuleOutputs', source='neck'))

    def record(from_student: bool, level: int) -> dict:
        return dict(from_student=from_student, recorder='fpn', data_idx=level)

    cfg = dict(
        type=kind,
        architecture=copy.deepcopy(student),
        teacher=copy.deepcopy(teacher),
        distiller=dict(
            type='ConfigurableDistiller',
            student_recorders=recorder,
            teacher_recorders=copy.deepcopy(recorder),
            distill_losses={name: dict(loss) for name in names},
            loss_forward_mappings={
                name: {ours: record(True, i), theirs: record(False, i)} for i, name in enumerate(names)
            },
        ),
    )
    with DefaultScope.overwrite_default_scope('mmrazor'):
        return MODELS.build(cfg)


def checkpoint_bytes(training: Training) -> int:
    """Of a file with the state dict and the optimizer's, as the Runner saves both."""
    file = io.BytesIO()
    torch.save(dict(state_dict=training.model.state_dict(), optimizer=training.wrapper.state_dict()), file)
    return file.tell()


def trainings(host: str, args: argparse.Namespace) -> tuple[dict[str, Training], Teaching]:
    """Ours and theirs, and the teacher alone."""
    name = 'retinanet_r101-r18_fpn_1x_coco.py'
    plain_path = f'detection/{host}/{host}_{name}'
    sokd_path = f'detection/sokd/sokd_fitnet_{name}' if host == 'fitnet' else f'detection/{host}/sokd_{host}_{name}'
    plain, sokd = (build(path, args, args.side, args.batch_size) for path in (plain_path, sokd_path))
    student = student_alone(plain, plain_path, args, args.side, args.batch_size)
    cfg = load(CONFIGS / plain_path, args.width).optim_wrapper
    found = {'student alone': student, 'mmsokd, plain': plain}
    found['mmsokd, plain, trim'] = build(plain_path, args, args.side, args.batch_size, ['trim'])
    found['mmsokd, SoKD searching'] = sokd
    for kind in PEERS:
        model = peer(kind, host, student.model, plain.model.teacher)
        found[f'MMRazor, {kind}'] = Training(model, cfg, args.side, args.batch_size, args.amp, model.student)
    return found, Teaching(plain)


def loss_of_host(logged: Mapping[str, Tensor]) -> float:
    """Of one step, over all levels; both toolboxes call its parts ``distill.*``."""
    return float(sum(value for key, value in logged.items() if key.startswith('distill.')))


def compare(host: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one host."""
    found, teaching = trainings(host, args)
    losses = {name: loss_of_host(training.step(training.batch())) for name, training in found.items()}
    variants: dict[str, Variant] = {name: training.variant() for name, training in found.items()}
    sokd = found['mmsokd, SoKD searching']
    variants['mmsokd, SoKD searching'] = sokd.variant(searching_step(sokd, 'fused'))
    variants['teacher, to the tap'] = teaching.variant('to_the_tap')
    seconds = times(variants, args)
    held = {name: own.total for name, own in memory(variants, args.memory_rounds).items()}
    files = {name: checkpoint_bytes(training) for name, training in found.items()}
    return dict(seconds=seconds, bytes=held, checkpoint=files, loss=losses)


def table(figures: dict[str, Any]) -> str:
    """Ratios above one speak for ours: a peer's time or memory over that of our plain host.

    The host's loss is that of the very first step, in which all have the same weights: the same work is compared.
    """
    seconds, held, files = figures['seconds'], figures['bytes'], figures['checkpoint']
    floor = [sum(pair) for pair in zip(seconds['student alone'], seconds['teacher, to the tap'], strict=True)]
    base, base_held = seconds['mmsokd, plain'], held['mmsokd, plain']
    rows = []
    for name, size in files.items():
        rows.append(
            [
                name,
                Spread.of(seconds[name]).text(1e-3, 1),
                ratios(seconds[name], floor).text(),
                ratios(seconds[name], base).text(),
                f'{Spread.of(held[name]).middle / MIB:.0f}',
                ratios(held[name], base_held).text(),
                f'{size / MIB:.1f}',
                f'{size / files["student alone"]:.2f}',
                f'{figures["loss"][name]:.4f}',
            ]
        )
    head = ['step', 'ms', 'times the floor', 'times ours, plain', 'peak MiB', 'times ours, plain']
    return markdown([*head, 'checkpoint MiB', "times the student's", "the host's loss"], rows)


def main() -> None:
    args = parse_args()
    import_mmrazor(args.mmrazor)
    figures = {}
    for host in args.host:
        figures[host] = compare(host, args)
        size = f'{args.batch_size} pictures of {args.side} x {args.side}, width {args.width:g}'
        print(f'\n{host}, {size}; {clock_name(args.wall)}\n\n{table(figures[host])}', flush=True)
    write(args.json, figures)


if __name__ == '__main__':
    main()
