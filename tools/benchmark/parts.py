"""Time the parts of a distillation step on their own: DAFA's operations, the draw, areas and masks, each loss.

python tools/benchmark/parts.py --only areas draw

Areas and masks stand beside Python loops over pictures and areas, as the method's public code makes them.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _measure import Spread, Variant, add_rounds, clock_name, markdown, ratios, repeated, times, write
from mmengine.device import get_device
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from mmsokd import losses
from mmsokd.areas import DistinctiveAreaDetector, area_weight, decode, keep_peaks
from mmsokd.augment import FEATURE_OPS, FeatureAugmentationNeck, Policy
from mmsokd.distillers.parts import build_part

CLASSES = 100
# What losses take beside what the distiller fills in; and those that compare logits.
LOSSES: dict[str, dict[str, Any]] = {'CRDLoss': dict(num_samples=1000)}
LOGITS = ('DISTLoss', 'DKDLoss', 'DPDLoss', 'DRKDLoss', 'KDLoss', 'RCKALoss', 'StudentFriendlyKDLoss')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ['ops', 'draw', 'areas', 'losses']
    parser.add_argument('--only', nargs='+', choices=kinds, default=kinds, help='what to time')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--channels', type=int, default=128)
    parser.add_argument('--side', type=int, default=16, help='of the map, in cells')
    parser.add_argument('--num-areas', type=int, default=8)
    parser.add_argument('--least', type=float, default=0.02, help='seconds that the runs for one figure take together')
    add_rounds(parser)
    return parser.parse_args()


# ---- areas ----------------------------------------------------------------------------------------------------------


def areas(heat: Tensor, size: Tensor, offset: Tensor, num_areas: int) -> Tensor:
    """Boxes and masks as a training step makes them: (N, 1, H, W)."""
    boxes, scores = decode(heat, size, offset, num_areas)
    return area_weight(boxes, scores, heat.shape[-2:], 'union')


def areas_in_loops(heat: Tensor, size: Tensor, offset: Tensor, num_areas: int) -> Tensor:
    """The same picture by picture and area by area, with numbers on the host, as the public code does."""
    n, _, height, width = heat.shape
    mask = torch.zeros(n, 1, height, width, device=heat.device)
    scores, index = keep_peaks(heat).flatten(1).topk(min(num_areas, height * width))
    for i in range(n):
        for score, place in zip(scores[i], index[i], strict=True):
            if score.item() <= 0:
                continue
            row, column = divmod(place.item() % (height * width), width)
            centre = [column + offset[i, 0, row, column].item(), row + offset[i, 1, row, column].item()]
            span = []
            for where, side, limit in zip(centre, size[i, :, row, column].tolist(), (width, height), strict=True):
                where = min(max(where, 0.0), limit)
                low, high = max(where - side / 2, 0.0), min(where + side / 2, float(limit))
                if high - low < 1:
                    low = min(max((low + high) / 2 - 0.5, 0.0), limit - 1.0)
                    high = low + 1
                # the cells whose centres lie inside
                span.append(slice(int(-(-(low - 0.5) // 1)), int(-(-(high - 0.5) // 1))))
            mask[i, 0, span[1], span[0]] = 1
    return mask


def maps(args: argparse.Namespace, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a head says: heat, size and offset."""
    generator = torch.Generator().manual_seed(0)
    n, side = args.batch_size, args.side
    heat, size, offset = (torch.rand(n, k, side, side, generator=generator) for k in (1, 2, 2))
    return heat.to(device), (size * 5).to(device), offset.to(device)


def area_parts(args: argparse.Namespace, device: str) -> dict[str, Variant]:
    given = maps(args, device)
    head = DistinctiveAreaDetector([args.channels], args.num_areas).to(device)
    student, teacher = pair(args, device)

    def detector(_: Any) -> None:
        sum(head([student], [teacher]).losses.values()).backward()

    return {
        'areas: decode and masks in loops': Variant(lambda _: areas_in_loops(*given, args.num_areas)),
        'areas: decode and masks': Variant(lambda _: areas(*given, args.num_areas)),
        'areas: the whole detector, forward and backward': Variant(detector),
    }


# ---- augmentation ---------------------------------------------------------------------------------------------------


def pair(args: argparse.Namespace, device: str) -> tuple[Tensor, Tensor]:
    """A student's feature, with a gradient, and a teacher's."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, args.channels, args.side, args.side)
    student, teacher = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    return student.requires_grad_(), teacher


def draw_parts(args: argparse.Namespace, device: str) -> dict[str, Variant]:
    neck = FeatureAugmentationNeck()
    _, teacher = pair(args, device)
    draw = Policy().sample(1)

    def search(_: Any) -> None:
        neck.searching = True
        drawn = neck.sample(args.batch_size, device)
        neck.search(neck.objective(neck([teacher], drawn), [teacher]), drawn)
        neck.pop_gradient()

    def rest(_: Any) -> None:
        neck.searching = False
        neck([teacher], neck.sample(args.batch_size, device))

    return {
        'draw: a sub-policy and its gates': Variant(lambda _: neck.policy.sample(1)),
        'draw: the random numbers of an operation': Variant(lambda _: draw.randomness(teacher, noise=False)),
        'draw, refine, and the gradient of the policy': Variant(search),
        'draw and refine, once the search is over': Variant(rest),
    }


def op_parts(args: argparse.Namespace, device: str) -> dict[str, Variant]:
    _, teacher = pair(args, device)
    rand = Policy().sample(1).randomness(teacher, noise=True)

    def part(name: str) -> Callable[[Any], Any]:
        op = FEATURE_OPS[name]

        def run(_: Any) -> Tensor:
            return op.function(teacher, op.strength(torch.full((len(teacher),), 0.7, device=device)), rand)

        return torch.no_grad()(run)

    return {f'op: {name}': Variant(part(name)) for name in FEATURE_OPS}


# ---- losses ---------------------------------------------------------------------------------------------------------


def loss_names() -> list[str]:
    """All of mmsokd's."""
    return [name for name in losses.__all__ if name.endswith('Loss') and name != 'TermLoss']


def sample_of(index: int, side: int) -> BaseDataElement:
    """With a box, a class and a number."""
    boxes = torch.tensor([[0.0, 0.0, side / 2, side / 2]])
    meta = dict(batch_input_shape=(side, side), pad_shape=(side, side), img_shape=(side, side), sample_idx=index)
    label = torch.tensor([index % CLASSES])
    return BaseDataElement(metainfo=meta, gt_label=label, gt_instances=InstanceData(bboxes=boxes, labels=label[:1]))


def loss_part(name: str, args: argparse.Namespace, device: str, masked: bool = False) -> Variant:
    """A loss of mmsokd, forward and backward, on what it compares; ``masked``: in every other cell, as in areas."""
    cls = getattr(losses, name)
    n, c, side = args.batch_size, args.channels, args.side
    shapes = [(n, CLASSES)] if name in LOGITS else [(n, c, side, side)]
    if cls.pyramid:  # a feature, and the output behind it
        shapes = [(n, c, side, side), (n, CLASSES)]
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(s, generator=generator).to(device) for s in shapes] for _ in range(2))
    channels = [shape[1] for shape in shapes] if cls.pyramid else shapes[0][1]
    found = dict(student_channels=channels, teacher_channels=channels, signed=[True] * 2 if cls.pyramid else True)
    loss = build_part(name, dict(type=cls, **LOSSES.get(name, {})), 'losses', **found).to(device)
    more = dict(samples=[sample_of(i, 16 * side) for i in range(n)]) if cls.wants_samples else {}
    if masked:
        more['weight'] = (torch.arange(side * side) % 2).float().view(1, 1, side, side).repeat(n, 1, 1, 1).to(device)
    student = [x.requires_grad_() for x in student]

    def run(_: Any) -> None:
        pair = (student, teacher) if cls.pyramid else (student[0], teacher[0])
        value = loss(*pair, **more)
        (value.loss if isinstance(value, losses.LossResult) else value).backward()
        for x in (*student, *loss.parameters()):
            x.grad = None

    return Variant(run)


def loss_parts(args: argparse.Namespace, device: str) -> dict[str, Variant]:
    parts = {f'loss: {name}': loss_part(name, args, device) for name in loss_names()}
    per_position = [name for name in loss_names() if getattr(losses, name).per_position]
    return parts | {f'loss: {name}, masked': loss_part(name, args, device, masked=True) for name in per_position}


PARTS: dict[str, Callable[[argparse.Namespace, str], dict[str, Variant]]] = dict(
    ops=op_parts, draw=draw_parts, areas=area_parts, losses=loss_parts
)


def table(seconds: dict[str, list[float]]) -> str:
    """Medians; and how often a thing could run while the loops run once."""
    loops = next((own for name, own in seconds.items() if name.endswith('in loops')), None)
    rows = []
    for name, own in seconds.items():
        faster = ratios(loops, own).text(digits=0) if loops and name.startswith('areas: decode') else ''
        rows.append([name, Spread.of(own).text(1e-3, 3), faster])
    return markdown(['part', 'ms', 'times as fast as the loops'], rows)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    device = get_device()
    found: dict[str, Variant] = {}
    for kind in args.only:
        found.update(PARTS[kind](args, device))
    rows = {name: repeated(variant, args.least) for name, variant in found.items()}
    seconds = times({name: row for name, (row, _) in rows.items()}, args)
    seconds = {name: [value / rows[name][1] for value in own] for name, own in seconds.items()}
    size = f'{args.batch_size} maps of {args.channels} x {args.side} x {args.side}, {args.num_areas} areas'
    print(f'{size}; {clock_name(args.wall)}\n\n{table(seconds)}')
    write(args.json, dict(title=size, clock=clock_name(args.wall), seconds=seconds))


if __name__ == '__main__':
    main()
