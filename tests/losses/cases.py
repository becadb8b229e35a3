"""Every registered loss once: how to build and to call it, and its slow twin; test_every_loss.py runs over it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmsokd.losses import TermLoss
from mmsokd.losses.mgd import draw_mask
from mmsokd.registry import MODELS
from tests.losses.common import arrays, boxed, in_cells, shake
from tests.reference import ackd, crd, dense, logits, losses, mtkdssr, relation, skd
from tests.reference.plain import nearest

BOXES = [[(4, 6, 30, 20), (10, 0, 17, 40)], []]  # pixels of a 40 x 48 batch
FGD = dict(alpha=0.7, beta=0.3, gamma=0.2, lambda_=0.1, temperature=0.5)  # of one size, so that none hides


class Case(NamedTuple):
    """A loss: what it is built of, its twin, and shapes that it compares.

    Attributes:
        cfg: arguments of the loss.
        twin: of the loss, and of student and teacher (arrays): the value, in plain Python and numpy.
        shapes: of student and teacher, each a batch that it takes; of a pyramid each side is a list of them.
        samples: data samples for a shape.
        ranks: dimensions that it takes.
        zero: is 0 for equal inputs, and for these only.
        stops: takes something that it computes for a constant, which finite differences do not.
    """

    cfg: dict
    twin: Callable[..., float]
    shapes: list[tuple]
    samples: Callable[[tuple], list] | None = None
    ranks: tuple[int, ...] = (4,)
    zero: bool = True
    stops: bool = False


def same(*shapes: tuple) -> list[tuple]:
    return [(shape, shape) for shape in shapes]


def build(name: str) -> TermLoss:
    """The case's loss in float64 with all its parameters at random, since zeros and ones would hide mistakes."""
    return shake(MODELS.build(dict(type=f'mmsokd.{name.split()[0]}', **CASES[name].cfg)))


def more(name: str, student: Any) -> dict[str, Any]:
    """What the loss takes beside student and teacher."""
    samples = CASES[name].samples
    shape = tuple(student.shape if isinstance(student, torch.Tensor) else student[-1].shape)
    return dict(samples=samples(shape)) if samples else {}


# ---- data samples ---------------------------------------------------------------------------------------------------


def boxes(shape):
    return boxed((BOXES * shape[0])[: shape[0]])


def classes(shape):
    """Of mmpretrain for (N, K), of mmseg for (N, K, H, W)."""
    if len(shape) != 4:
        return [DataSample().set_gt_label((2 * i + 1) % shape[1]) for i in range(shape[0])]
    n, k, h, w = shape
    maps = torch.randint(0, k, (n, 1, h, w), generator=torch.Generator().manual_seed(0))
    return [SegDataSample(gt_sem_seg=PixelData(data=x)) for x in maps]


def objects(shape):
    """Of mmdet for (N, A 5, H, W), with boxes of :data:`BOXES` in the first picture, the third, ...."""
    if len(shape) != 4:
        return classes((shape[0], 5))
    samples = boxes(shape)
    for sample in samples:
        sample.gt_instances.labels = torch.tensor([4, 2][: len(sample.gt_instances.bboxes)], dtype=torch.long)
    return samples


def anchors_with_a_class(shape, s, t):
    """Rows of 5 logits of those in cells that a box touches, of both sides, and the classes; stride 8."""
    samples = objects(shape)
    labels = [
        skd.smallest_box(cells, sample.gt_instances.labels.tolist(), shape[2:])
        for cells, sample in zip(in_cells(samples), samples, strict=True)
    ]
    labels = [y for picture in labels for row in picture for y in row for _ in range(shape[1] // 5)]
    kept = [i for i, y in enumerate(labels) if y is not None]
    rows = [np.array([skd.rows_of(x, 5)[i] for i in kept]) for x in (s, t)]
    return *rows, [labels[i] for i in kept]


def numbered(shape):
    return [DataSample(metainfo=dict(sample_idx=(7 * i + 4) % 20)) for i in range(shape[0])]


# ---- twins that need more than both features ------------------------------------------------------------------------


def true_classes(shape):
    """One a prediction, in their order."""
    samples = classes(shape)
    return [y for x in samples for y in (x.gt_sem_seg.data if len(shape) == 4 else x.gt_label).flatten().tolist()]


def dkd_twin(loss, s, t):
    return logits.dkd(s, t, true_classes(s.shape), 0.7, 3.0, 2.0)


def dpd_twin(_, s, t):
    return logits.weighted_kd(s, t, logits.dpd_weights(s, t, true_classes(s.shape), 0.9, 2.0), 3.0)


def ital_twin(_, s, t):
    feature = s[0].mean((2, 3)) if s[0].ndim > s[1].ndim else s[0]
    weights = logits.ital_weights(feature, s[1], t[1], true_classes(s[1].shape), 0.3, 0.7)
    return logits.weighted_kd(s[1], t[1], weights, 3.0)


def crd_twin(loss, s, t):
    index = [sample.sample_idx for sample in numbered(s.shape)]
    keys = loss._draw(torch.tensor(index)).tolist()
    linear = loss.student_embedding, loss.teacher_embedding
    sides = [crd.embed(x, *arrays(m.weight, m.bias)) for x, m in zip((s, t), linear, strict=True)]
    total = 0.0
    for queries, bank in zip(sides, arrays(loss.teacher_bank, loss.student_bank), strict=True):
        z = crd.normalizer(queries, bank, keys, 0.07)
        total += crd.nce(queries, bank, keys, 0.07, z)
    return total


def mgd_twin(loss, s, t):
    mask = draw_mask(torch.from_numpy(s), 0.4).numpy()
    return dense.mgd(s, t, mask, [arrays(loss.generate[i].weight, loss.generate[i].bias) for i in (0, 2)])


def vid_twin(loss, s, t):
    (raw,) = arrays(loss.raw)
    return dense.vid(s, t, [dense.softplus(v) + 1e-5 for v in raw.tolist()])


def fgd_block(relation):
    down, norm, _, up = relation.transform
    names = dict(key=relation.key, down=down, norm=norm, up=up)
    found = {}
    for name, layer in names.items():
        found[name], found[f'{name}_bias'] = (x.squeeze() for x in arrays(layer.weight, layer.bias))
    return found


def fgd_twin(loss, s, t):
    blocks = fgd_block(loss.student_relation), fgd_block(loss.teacher_relation)
    return dense.fgd(s, t, in_cells(boxes(s.shape)), blocks, **FGD)


SKD = dict(tau=2.0, softening=3.0, anchor=0.7)


def skd_layers(loss):
    """Of the simplifier, by the twin's names."""
    net = loss.simplifier
    names = dict(embed=net.embed.weight, place=net.place, norm=net.norm.weight, norm_bias=net.norm.bias)
    names |= dict(qkv=net.qkv.weight, qkv_bias=net.qkv.bias, out=net.out.weight, out_bias=net.out.bias)
    return {name: arrays(x)[0] for name, x in names.items() if x is not None}


def skd_twin(loss, s, t, residual='logits'):
    labels = true_classes(s.shape)
    chosen = loss._draw(torch.tensor(labels)).tolist()
    rows = [[skd.rows_of(x, s.shape[1])[i] for i in chosen] for x in (s, t)]
    labels = [labels[i] for i in chosen]
    return skd.skd(*rows, labels, skd_layers(loss), heads=2, residual=residual, **SKD)[0]


SSR = dict(channel_weight=0.7, response_weight=0.9, review_weight=0.4, auxiliary_weight=0.6)
STAGES = [(3, 2, 4, 6), (3, 3, 3, 3)], [(3, 4, 4, 5), (3, 2, 2, 3)]  # of student and teacher
PICTURES = STAGES[0] + [(3, 4)], STAGES[1] + [(3, 4)]
SEGMENTS = STAGES[0] + [(3, 4, 2, 3)], STAGES[1] + [(3, 4, 2, 3)]


def ssr_nets(loss, trained=True):
    """The layers, by the twin's names, with BatchNorm's kept statistics unless it is ``trained``."""

    def norm(module):
        kept = None if trained else tuple(arrays(module.norm.running_mean, module.norm.running_var))
        return [*arrays(module.conv.weight, module.norm.weight, module.norm.bias), kept, module.with_activation]

    def head(module):
        return [*norm(module.conv), *arrays(module.classify.weight, module.classify.bias)]

    heads = dict(student=loss.student_heads, teacher=loss.teacher_heads)
    return dict(fits=[norm(x) for x in loss.fits]) | {side: [head(x) for x in found] for side, found in heads.items()}


def ssr_labels(shape):
    """The classes for logits of a size, as numpy: of a dense one by the cell in which each new cell's centre lies."""
    samples = classes(shape)
    if len(shape) == 2:
        return lambda size: [x.gt_label.item() for x in samples]
    maps = [x.gt_sem_seg.data[0].numpy() for x in samples]
    return lambda size: [nearest(plane, tuple(size), 0.5) for plane in maps]


def ssr_twin(loss, s, t, **kwargs):
    parts = mtkdssr.parts(s, t, ssr_nets(loss), ssr_labels(s[-1].shape), tau=2.0, **kwargs)
    return sum(weight * part for weight, part in zip(SSR.values(), parts, strict=True))


ACKD = dict(student_channels=[2, 3, 4], teacher_channels=[4, 2, 4], tau=2.0, head_channels=3, adversarial_weight=0.3)
ACKD_WEIGHTS = dict(auxiliary_weight=0.7, teacher_weight=0.9, fused_weight=0.4)


def ackd_nets(loss, trained=True):
    """The layers, by the twin's names, with BatchNorm's kept statistics unless it is ``trained``."""

    def learner(module):
        norm = module.conv.norm
        kept = None if trained else tuple(arrays(norm.running_mean, norm.running_var))
        layers = [*arrays(module.conv.conv.weight, norm.weight, norm.bias), kept, True]
        return [*layers, *arrays(module.classify.weight, module.classify.bias)]

    first, _, last = loss.discriminate
    return dict(
        learners=[learner(x) for x in loss.learners],
        query=arrays(loss.query)[0],
        classify=arrays(loss.classify.weight, loss.classify.bias),
        judge=arrays(first.weight, first.bias, last.weight, last.bias),
    )


def ackd_twin(loss, s, t):
    found = ackd.parts(s, t, ackd_nets(loss), ssr_labels(s[-1].shape), 2.0, loss.signed)
    return sum(weight * part for weight, part in zip((*ACKD_WEIGHTS.values(), 1), found, strict=True))


FMKT = dict(student_channels=[3, 4], teacher_channels=[2, 4], steps=3, tau=2.0)
FMKT_SHAPES = [  # feature and logits: maps to vectors, vectors to vectors, maps to maps
    ([(5, 3, 2, 3), (5, 4)], [(5, 2, 4, 4), (5, 4)]),
    ([(5, 3), (5, 4)], [(5, 2), (5, 4)]),
    ([(2, 3, 2, 3), (2, 4, 2, 3)], [(2, 2, 2, 3), (2, 4, 2, 3)]),
]


def fmkt_layers(loss):
    """The velocity's, and the linear layer behind the flow, by the twin's order."""
    time, change, norm = loss.velocity.time, loss.velocity.change, loss.velocity.norm
    pairs = [[time[0], time[2]], [change[0], change[2]], [norm], [loss.classify]]
    *velocity, head = [arrays(*(x for m in layers for x in (m.weight, m.bias))) for layers in pairs]
    return velocity, head


def fmkt_ends(loss, s):
    return losses.fmkt_predictions(s[0], *fmkt_layers(loss), loss.steps, s[1].ndim == 4)


def fmkt_twin(loss, s, t):
    return losses.fmkt(fmkt_ends(loss, s), s[1], t[1], true_classes(s[1].shape), loss.metric, loss.tau)


CASES = {
    'FitNetLoss': Case({}, lambda _, s, t: losses.fitnet(s, t), same((4, 3, 5, 6), (4, 3)), ranks=(2, 3, 4)),
    'FitNetLoss normalized': Case(
        dict(normalized=True),
        lambda _, s, t: losses.fitnet(s, t) / losses.fitnet(0 * t, t),
        same((4, 3, 5, 6), (4, 3)),
        ranks=(2, 3, 4),
        stops=True,
    ),
    'ATLoss': Case(
        dict(p=2.0), lambda _, s, t: losses.at(s, t), [((4, 3, 5, 6), (4, 3, 5, 6)), ((2, 3, 4, 3), (2, 5, 4, 3))]
    ),
    'PKDLoss': Case({}, lambda _, s, t: losses.pkd(s, t), same((4, 3, 5, 6))),
    'CWDLoss': Case(dict(tau=2.0), lambda _, s, t: dense.cwd(s, t, 2.0), same((2, 3, 5, 6))),
    'CWDLogitsLoss': Case(dict(tau=2.0), lambda _, s, t: dense.cwd(s, t, 2.0), same((2, 3, 5, 6))),
    'MGDLoss': Case(dict(teacher_channels=3, lambda_mgd=0.4), mgd_twin, same((2, 3, 4, 5)), zero=False),
    'VIDLoss': Case(dict(teacher_channels=3), vid_twin, same((2, 3, 5, 6)), zero=False),
    'ReviewKDLoss': Case(
        {},
        lambda _, s, t: dense.hcl(s, t),
        same((2, 3, 8, 8), (2, 3, 5, 6), (2, 3, 7, 2), (1, 2, 1, 4), (1, 2, 4, 4), (2, 2, 1, 1)),
    ),
    'FGDLoss': Case(dict(teacher_channels=4, **FGD), fgd_twin, same((2, 4, 5, 6)), boxes, zero=False),
    'LDLoss': Case(
        dict(teacher_channels=16, tau=3.0),
        lambda _, s, t: dense.ld(s, t, in_cells(boxes(s.shape)), 3.0),
        same((2, 16, 5, 6)),
        boxes,
    ),
    'KDLoss': Case(dict(tau=2.0), lambda _, s, t: logits.kd(s, t, 2.0), same((6, 5), (2, 5, 3, 4)), ranks=(2, 4)),
    'KDLoss sigmoid': Case(
        dict(tau=2.0, activation='sigmoid'),
        lambda _, s, t: logits.kd(s, t, 2.0, 'sigmoid'),
        same((6, 5), (2, 5, 3, 4)),
        ranks=(2, 4),
    ),
    'DKDLoss': Case(dict(alpha=0.7, beta=3.0, tau=2.0), dkd_twin, same((6, 5), (2, 5, 3, 4)), classes, ranks=(2, 4)),
    'DRKDLoss': Case(
        dict(tau=3.0),
        lambda _, s, t: logits.drkd(s, t, true_classes(s.shape), 3.0),
        same((6, 5), (2, 5, 3, 4)),
        classes,
        ranks=(2, 4),
        zero=False,
    ),
    'DRKDLoss anchors': Case(
        dict(tau=3.0, activation='sigmoid', num_classes=5, teacher_channels=15),
        lambda _, s, t: logits.drkd(*anchors_with_a_class(s.shape, s, t), 3.0, 'sigmoid'),
        same((2, 15, 5, 6)),
        objects,
        ranks=(2, 4),
        zero=False,
    ),
    'DPDLoss': Case(
        dict(alpha=0.9, clip=2.0, tau=3.0), dpd_twin, same((6, 5), (2, 5, 3, 4)), classes, ranks=(2, 4), stops=True
    ),
    'ITALLoss': Case(
        dict(student_channels=[3, 4], teacher_channels=[2, 4], lr=0.3, beta=0.7, tau=3.0),
        ital_twin,
        FMKT_SHAPES,
        classes,
        ranks=(),
        zero=False,
        stops=True,
    ),
    'DISTLoss': Case(
        dict(beta=2.0, gamma=0.5, tau=3.0),
        lambda _, s, t: logits.dist(s, t, 2.0, 0.5, 3.0),
        same((6, 5), (2, 5, 3, 4)),
        ranks=(2, 4),
    ),
    'RKDLoss': Case(
        dict(distance_weight=2.0, angle_weight=3.0),
        lambda _, s, t: relation.rkd(s, t, 2.0, 3.0),
        [((5, 3), (5, 4)), ((5, 3, 2, 4), (5, 4, 3, 1)), ((5, 3), (5, 4, 2, 2))],
        ranks=(2, 4),
    ),
    'SPLoss': Case(
        {},
        lambda _, s, t: relation.sp(s, t),
        [((5, 3), (5, 4)), ((5, 3, 2, 4), (5, 4, 3, 1)), ((5, 3), (5, 4, 2, 2))],
        ranks=(2, 3, 4),
    ),
    'RCKALoss': Case(
        dict(picture_weight=2.0, class_weight=0.5),
        lambda _, s, t: relation.rcka(s, t, 2.0, 0.5),
        same((6, 5), (2, 5, 3, 4), (4, 7)),
        ranks=(2, 4),
    ),
    'PCKALoss': Case(
        dict(patch_size=2),
        lambda _, s, t: relation.pcka(s, t, 2),
        same((2, 3, 4, 6), (2, 3, 5, 3), (1, 2, 3, 3), (3, 2, 7, 1)),
    ),
    'CRDLoss': Case(
        dict(student_channels=3, teacher_channels=5, num_samples=20, feat_dim=4, nce_k=7),
        crd_twin,
        [((3, 3, 2, 3), (3, 5, 2, 3)), ((1, 3), (1, 5))],
        numbered,
        ranks=(2, 4),
        zero=False,
    ),
    'StudentFriendlyKDLoss': Case(
        dict(teacher_channels=5, embed_dims=6, num_heads=2, max_tokens=7, **SKD),
        skd_twin,
        same((6, 5), (2, 5, 3, 4), (3, 5)),
        classes,
        ranks=(2, 4),
        zero=False,
    ),
    'StudentFriendlyKDLoss over classes': Case(
        dict(
            teacher_channels=5,
            embed_dims=6,
            num_heads=2,
            max_tokens=7,
            over='classes',
            residual='probabilities',
            **SKD,
        ),
        lambda loss, s, t: skd_twin(loss, s, t, 'probabilities'),
        same((6, 5), (2, 5, 3, 4)),
        classes,
        ranks=(2, 4),
        zero=False,
    ),
    'MTKDSSRLoss': Case(
        dict(
            student_channels=[2, 3, 4],
            teacher_channels=[4, 2, 4],
            signed=[False, True, True],
            tau=2.0,
            head_channels=3,
            **SSR,
        ),
        ssr_twin,
        [PICTURES, SEGMENTS],
        classes,
        ranks=(),
        zero=False,
        stops=True,
    ),
    'MTKDSSRLoss of given responses': Case(
        dict(
            student_channels=[2, 3, 4, 4],
            teacher_channels=[4, 2, 4, 4],
            signed=[True, False, True, True],
            num_responses=2,
            tau=2.0,
            activation='sigmoid',
            review='all',
            **SSR,
        ),
        lambda loss, s, t: ssr_twin(loss, s, t, activation='sigmoid', review='all'),
        [tuple([*side, (3, 4, 4, 3), (3, 4, 2, 2)] for side in STAGES)],
        classes,
        ranks=(),
        zero=False,
        stops=True,
    ),
    'ACKDLoss': Case(
        dict(**ACKD, **ACKD_WEIGHTS, signed=[True, False, True]),
        ackd_twin,
        [PICTURES, SEGMENTS],
        classes,
        ranks=(),
        zero=False,
        stops=True,
    ),
    'ACKDLoss of signed features': Case(
        dict(**ACKD, **ACKD_WEIGHTS, signed=[False, True, True]),
        ackd_twin,
        [PICTURES, SEGMENTS, (SEGMENTS[0], [*SEGMENTS[1][:-1], (3, 4, 3, 2)])],
        classes,
        ranks=(),
        zero=False,
        stops=True,
    ),
    'FMKTLoss': Case(FMKT, fmkt_twin, FMKT_SHAPES, classes, ranks=(), zero=False, stops=True),
    'FMKTLoss by KD': Case(dict(FMKT, metric='kd'), fmkt_twin, FMKT_SHAPES, classes, ranks=(), zero=False, stops=True),
}
