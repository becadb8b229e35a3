"""The methods by name: which terms each host has on each task, with the numbers of the configs in `configs`."""

import re
from enum import Enum
from typing import Any, NamedTuple

from mmsokd.checks import nearest
from mmsokd.registry import MODELS

# Roles: what of a model a host looks at. `mmsokd.recipes.pairing` finds it.
NEXT_TO_LAST, LAST, STAGES, LAST_STAGES = 'stage -2', 'stage -1', 'stages', 'stages -3 to -1'
LEVELS, FINE_LEVELS = 'levels', 'the three finest levels'
HEAD, LOGITS, BOXES = 'feature of the head', 'logits', 'distributions of boxes'


class Found(Enum):
    """A loss's argument that is read off the models or the data."""

    CLASSES = 'classes'
    RESPONSES = 'levels of the head'
    PICTURES = 'training pictures'


class Host(NamedTuple):
    """A host's recipe on one task.

    Attributes:
        loss: registered name of the loss.
        terms: name -> roles that its tap is made of.
        weight: of each term, or its schedule.
        source: where weight and options come from.
        options: arguments of the loss.
        over: what the weight is divided by the number of: ``'classes'``, or the ``'levels'`` that are summed up.
        slow: part of the names of parameters that learn at a thousandth of the rate.
    """

    loss: str
    terms: dict[str, list[str]]
    weight: float | list[list[float]]
    source: str
    options: dict[str, Any] = {}
    over: str | None = None
    slow: str | None = None

    @property
    def untried(self) -> bool:
        """Whether the numbers are those of another task."""
        return self.source.endswith(_UNTRIED)

    @property
    def on_logits(self) -> bool:
        """Whether it compares predictions."""
        return MODELS.get(self.loss).on_logits


class Method(NamedTuple):
    """A host on a task, alone or with SoKD."""

    name: str
    host: Host
    task: str
    sokd: bool


_UNTRIED = 'nobody has tried it on this task'


def _untried(task: str) -> str:
    return f'the one for {task}; {_UNTRIED}'


_KNOWN = "mmsokd's choice"
# The configs have the plain error, as those with whom they are compared. Here the teacher is anybody's, and so is the
# scale of its features: on a small pyramid the plain error was nine tenths of all losses.
_RELATIVE = dict(normalized=True)
_LATE = [[0.0, 0.0], [0.25, 1.0]]  # a loss that does not see the scale of logits has large gradients at small ones
_SKD = dict(slow='simplifier')
_DKD = dict(alpha=1.0, beta=0.5, tau=1.0)
_DIST = dict(beta=1.0, gamma=1.0, tau=1.0)
_DPD = dict(alpha=0.5, tau=4.0)
_ITAL = dict(lr=0.05, tau=4.0)
_RKD = dict(distance_weight=25.0, angle_weight=50.0)
_FMKT = dict(steps=8, metric='dist', tau=1.0)
_TAU4, _SIGMOID = dict(tau=4.0), dict(activation='sigmoid', tau=1.0)

HOSTS: dict[str, dict[str, Host]] = {
    'classification': {
        'fitnet': Host('FitNetLoss', dict(loss_hint=[NEXT_TO_LAST]), 1.0, _KNOWN, _RELATIVE),
        'at': Host('ATLoss', dict(loss_at3=[NEXT_TO_LAST], loss_at4=[LAST]), 1000.0, "mdistiller's on ImageNet"),
        'pkd': Host('PKDLoss', dict(loss_pkd=[NEXT_TO_LAST]), 10.0, _untried('detection')),
        'cwd': Host('CWDLoss', dict(loss_cwd=[NEXT_TO_LAST]), 50.0, _untried('segmentation'), _TAU4),
        'pcka': Host('PCKALoss', dict(loss_pcka=[NEXT_TO_LAST]), 10.0, _untried('detection'), dict(patch_size=4)),
        'mgd': Host('MGDLoss', dict(loss_mgd=[NEXT_TO_LAST]), 2e-5, _untried('detection'), dict(lambda_mgd=0.65)),
        'reviewkd': Host('ReviewKDLoss', dict(loss_reviewkd=[STAGES]), 1.0, "mdistiller's on ImageNet"),
        'vid': Host('VIDLoss', dict(loss_vid=[NEXT_TO_LAST]), 1.0, "RepDistiller's on CIFAR-100"),
        'rkd': Host('RKDLoss', dict(loss_rkd=[LAST]), 1.0, "RepDistiller's on CIFAR-100", _RKD),
        'sp': Host('SPLoss', dict(loss_sp=[LAST]), 3000.0, "RepDistiller's on CIFAR-100"),
        'crd': Host('CRDLoss', dict(loss_crd=[LAST]), 0.8, "RepDistiller's", dict(num_samples=Found.PICTURES)),
        'kd': Host('KDLoss', dict(loss_kd=[LOGITS]), 5.0, "MMRazor's on ImageNet", dict(tau=1.0)),
        'dkd': Host('DKDLoss', dict(loss_dkd=[LOGITS]), 1.0, "mdistiller's (the authors') on ImageNet", _DKD),
        'drkd': Host('DRKDLoss', dict(loss_drkd=[LOGITS]), 1.0, _KNOWN, dict(tau=6.0)),
        'dpd': Host('DPDLoss', dict(loss_dpd=[LOGITS]), 1.0, _KNOWN, _DPD),
        'ital': Host('ITALLoss', dict(loss_ital=[HEAD, LOGITS]), 1.0, _KNOWN, _ITAL),
        'dist': Host('DISTLoss', dict(loss_dist=[LOGITS]), 2.0, "MMRazor's on ImageNet", _DIST),
        'rcka': Host('RCKALoss', dict(loss_rcka=[LOGITS]), _LATE, _KNOWN),
        'studentfriendlykd': Host('StudentFriendlyKDLoss', dict(loss_skd=[LOGITS]), 1.0, _KNOWN, **_SKD),
        'mtkdssr': Host('MTKDSSRLoss', dict(loss_ssr=[STAGES, LOGITS]), 1.0, _KNOWN),
        'ackd': Host('ACKDLoss', dict(loss_ackd=[STAGES, LOGITS]), 1.0, _KNOWN),
        'fmkt': Host('FMKTLoss', dict(loss_fmkt=[LAST, LOGITS]), 1.0, "the authors' on ImageNet", _FMKT),
    },
    'segmentation': {
        'fitnet': Host('FitNetLoss', dict(loss_hint=[LAST], loss_head=[HEAD]), 1.0, _KNOWN, _RELATIVE),
        'at': Host('ATLoss', dict(loss_at=[LAST]), 1000.0, _untried('classification')),
        'pkd': Host('PKDLoss', dict(loss_pkd=[HEAD]), 10.0, _untried('detection')),
        'cwd': Host('CWDLoss', dict(loss_cwd=[HEAD]), 50.0, "the authors', on features", _TAU4),
        'pcka': Host(
            'PCKALoss', dict(loss_pcka=[HEAD]), 10.0, "the authors' of a detector's level", dict(patch_size=16)
        ),
        'mgd': Host('MGDLoss', dict(loss_mgd=[HEAD]), 2e-5, _untried('detection'), dict(lambda_mgd=0.65)),
        'reviewkd': Host('ReviewKDLoss', dict(loss_reviewkd=[STAGES]), 1.0, _untried('classification')),
        'vid': Host('VIDLoss', dict(loss_vid=[LAST]), 1.0, _untried('classification')),
        'rkd': Host('RKDLoss', dict(loss_rkd=[LAST]), 1.0, _untried('classification'), _RKD),
        'sp': Host('SPLoss', dict(loss_sp=[LAST]), 3000.0, _untried('classification')),
        'kd': Host(
            'KDLoss', dict(loss_kd=[LOGITS]), 10.0, "CWD's authors' for this baseline", dict(tau=1.0), over='classes'
        ),
        'cwdlogits': Host('CWDLogitsLoss', dict(loss_cwd=[LOGITS]), 3.0, "the authors', on logits"),
        'dkd': Host('DKDLoss', dict(loss_dkd=[LOGITS]), 1.0, _untried('classification'), _DKD),
        'drkd': Host('DRKDLoss', dict(loss_drkd=[LOGITS]), 1.0, _KNOWN, dict(tau=6.0)),
        'dpd': Host('DPDLoss', dict(loss_dpd=[LOGITS]), 1.0, _KNOWN, _DPD),
        'ital': Host('ITALLoss', dict(loss_ital=[HEAD, LOGITS]), 1.0, _KNOWN, _ITAL),
        'dist': Host('DISTLoss', dict(loss_dist=[LOGITS]), 2.0, _untried('classification'), _DIST),
        'rcka': Host('RCKALoss', dict(loss_rcka=[LOGITS]), _LATE, _KNOWN),
        'studentfriendlykd': Host('StudentFriendlyKDLoss', dict(loss_skd=[LOGITS]), 1.0, _KNOWN, **_SKD),
        'mtkdssr': Host('MTKDSSRLoss', dict(loss_ssr=[LAST_STAGES, LOGITS]), 1.0, _KNOWN),
        'ackd': Host('ACKDLoss', dict(loss_ackd=[LAST_STAGES, HEAD, LOGITS]), 1.0, _KNOWN),
        'fmkt': Host('FMKTLoss', dict(loss_fmkt=[HEAD, LOGITS]), 1.0, _KNOWN, _FMKT),
    },
    'detection': {
        'fitnet': Host('FitNetLoss', dict(loss_hint=[LEVELS]), 1.0, _KNOWN, _RELATIVE, over='levels'),
        'at': Host('ATLoss', dict(loss_at=[LEVELS]), 100.0, _KNOWN),
        'pkd': Host('PKDLoss', dict(loss_pkd=[LEVELS]), 10.0, "the authors' for RetinaNet"),
        'cwd': Host('CWDLoss', dict(loss_cwd=[LEVELS]), 10.0, "MMRazor's for RetinaNet", dict(tau=1.0)),
        'pcka': Host(
            'PCKALoss', dict(loss_pcka=[FINE_LEVELS]), 10.0, "the authors' for RetinaNet", dict(patch_size=16)
        ),
        'mgd': Host(
            'MGDLoss', dict(loss_mgd=[LEVELS]), 2e-5, "the authors' for one-stage detectors", dict(lambda_mgd=0.65)
        ),
        'fgd': Host('FGDLoss', dict(loss_fgd=[LEVELS]), 1.0, "the authors' for RetinaNet"),
        'reviewkd': Host('ReviewKDLoss', dict(loss_reviewkd=[LEVELS]), 1.0, "the authors' for RetinaNet"),
        'vid': Host('VIDLoss', dict(loss_vid=[LEVELS]), 1.0, _untried('classification')),
        'rkd': Host('RKDLoss', dict(loss_rkd=[LAST]), 1.0, _untried('classification'), _RKD),
        'sp': Host('SPLoss', dict(loss_sp=[LAST]), 3000.0, _untried('classification')),
        'kd': Host('KDLoss', dict(loss_kd=[LOGITS]), 1.0, _KNOWN, _SIGMOID),
        'cwdlogits': Host('CWDLogitsLoss', dict(loss_cwd=[LOGITS]), 3.0, _untried('segmentation')),
        'ld': Host('LDLoss', dict(loss_ld=[BOXES]), 0.25, "GFL's of its own loss of the distributions", dict(tau=10.0)),
        'drkd': Host('DRKDLoss', dict(loss_drkd=[LOGITS]), 1.0, _KNOWN, dict(num_classes=Found.CLASSES, **_SIGMOID)),
        'studentfriendlykd': Host(
            'StudentFriendlyKDLoss', dict(loss_skd=[LOGITS]), 1.0, _KNOWN, dict(num_classes=Found.CLASSES), **_SKD
        ),
        'mtkdssr': Host(
            'MTKDSSRLoss',
            dict(loss_ssr=[LEVELS, LOGITS]),
            1.0,
            _KNOWN,
            dict(num_responses=Found.RESPONSES, **_SIGMOID),
        ),
    },
}
ALIASES = dict(skd='studentfriendlykd')  # as its paper calls it
# DAM's options, as the configs of each task have them.
# The area loss is a plain error too, and so relative here; `make_plan` divides its weight by the levels, which are
# summed.
AREAS = dict(
    classification=dict(num_areas=8, feat_channels=64, normalization='teacher'),
    segmentation=dict(feat_channels=64, normalization='teacher'),
    detection=dict(num_areas=16, normalization='teacher'),
)


def method_names(task: str) -> list[str]:
    """All names of a task: each host alone, then each with SoKD."""
    return [*HOSTS[task], *(f'sokd-{host}' for host in HOSTS[task])]


def find_method(key: str, name: str, task: str) -> Method:
    """The method that ``name`` means on ``task``: a host, or ``sokd-`` and a host; dashes and capitals do not count.

    Raises:
        ValueError: there is no such method, or not on this task; names the nearest one and all.
    """
    plain = re.sub('[^a-z0-9]', '', name.lower())
    sokd = plain.startswith('sokd') and plain != 'sokd'
    host = plain.removeprefix('sokd') if sokd else plain
    host = ALIASES.get(host, host)
    if host in HOSTS[task]:
        return Method(f'{"sokd-" * sokd}{host}', HOSTS[task][host], task, sokd)
    elsewhere = [other for other, hosts in HOSTS.items() if host in hosts]
    names = method_names(task)
    reason = f', which is made for {" and ".join(elsewhere)} (docs/hosts.md tells why)' if elsewhere else ''
    near = nearest(f'{"sokd-" * sokd}{host}', names, n=1)
    hint = f"; nearest: '{near[0]}'" if near else ''
    raise ValueError(
        f"{key}: expected a method for {task}, found '{name}'{reason}{hint}; there are {', '.join(HOSTS[task])}, and "
        "each with 'sokd-' before it"
    )
