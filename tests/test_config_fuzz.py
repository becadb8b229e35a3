"""300 mutated configs: each builds and trains a step, or is refused at build in one message that names the key.

They are drawn from one seed. To look for more, or at one again, with its message::

    python -m tests.test_config_fuzz 3000 7       # how many, and the seed
    python -m tests.test_config_fuzz 1 7 1234     # the one with this number
"""

import copy
import inspect
import math
import random
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmsokd import hooks
from mmsokd.areas import DistinctiveAreaDetector
from mmsokd.augment import FeatureAugmentationNeck, ImageAugmenter, KnowledgeRefiner
from mmsokd.checks import is_number
from mmsokd.distillers import SFTNTeacherTrainer
from mmsokd.distillers.face import Face
from mmsokd.losses import FitNetLoss
from mmsokd.registry import MODELS
from tests.builders import gfl, raw_batch, raw_cls_batch, raw_seg_batch, use_scope
from tests.distillers.test_host_table import ROWS, TASKS

COUNT = 300
SEED = 0
REFUSALS = (ValueError, TypeError, FileNotFoundError)  # as Distiller's documentation says
PACE = dict(autocast=None, channels_last=False, compile=False, stream=False, trim=False)
POOL = 'the pool'  # stands for a model that is built but once
SCOPES = dict(Classification='mmpretrain', Segmentation='mmseg', Detection='mmdet')
BATCHES = dict(
    Classification=partial(raw_cls_batch, 2, 32), Segmentation=partial(raw_seg_batch, 2, 64), Detection=raw_batch
)


# ---- the configs, with every option written out ---------------------------------------------------------------------


class Base(NamedTuple):
    """A config that builds and trains: a distiller's, or where there is no host a hook's."""

    task: str
    host: str | None
    cfg: dict


def options(cls: type, **given: Any) -> dict:
    """What ``cls`` has a default for, with it, so that it can be mutated."""
    parameters = inspect.signature(cls).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is not p.empty and p.name != 'init_cfg'}
    return {**found, **given}


def part(cls: type, **given: Any) -> dict:
    return dict(type=f'mmsokd.{cls.__name__}', **options(cls, **given))


WEIGHTS = (
    1.0,
    [(0.0, 1.0), (0.5, 0.5)],
    dict(shape='constant', start=2.0, stop=8, by_epoch=True),
    dict(shape='cosine', start=1.0, final=0.5, begin=0, end=8, stop=10, by_epoch=True),
)
CONV = dict(type='mmsokd.ConvAdapter', kernel_size=1, resize='bilinear', norm_cfg=dict(type='BN'), act_cfg=None)
SOKD = dict(type='mmsokd.SoKDAdapter', feat_channels=8, signed=True, norm_cfg=dict(type='GN', num_groups=4))
REVIEW = dict(type='mmsokd.ReviewKDAdapter', mid_channels=8, norm_cfg=dict(type='GN', num_groups=4))
RESIZE = dict(type='mmsokd.ResizeAdapter', resize='bilinear')


def base(i: int, folder: Path) -> Base:
    """One a row of the table of hosts; what else is in it goes by ``i``."""
    task, host = ROWS[i]
    cls = MODELS.get(f'mmsokd.{host}Loss')
    term = part(cls, **TASKS[task].hosts[host])
    term.update(loss_weight=WEIGHTS[i % 4], refine=True, areas=True)
    if i % 3:
        tap = term.pop('tap')
        term.update(student_tap=tap, teacher_tap=tap)
    if cls.on_logits:
        term['adapter'] = RESIZE if task == 'Segmentation' else None
    elif host == 'ReviewKD':
        term['adapter'] = REVIEW
    elif i % 2:
        term['adapter'] = CONV if i % 4 == 1 else dict(SOKD, resize='conv')
    refine = part(
        FeatureAugmentationNeck, estimator=('straight_through', 'relax')[i % 2], per_sample=i % 3 == 1 and i % 2 == 0
    )
    if cls.on_logits or (i % 5 == 0 and host != 'ReviewKD'):
        refine.update(at='backbone.layer2', student_at='backbone.layer2', resize='bilinear')
    areas = None if cls.on_logits else part(DistinctiveAreaDetector, num_areas=4, feat_channels=8)
    cfg = dict(type='mmsokd.SoKDDistiller', student=POOL, terms=dict(loss_host=term), refine=refine, areas=areas)
    cfg.update(keep_host=True, probe_size=64)
    teacher = dict(cfg=POOL, checkpoint=str(folder / f'{task}-{host == "LD"}.pth'), trust_checkpoint=False, **PACE)
    if i % 4 == 3:
        cfg['teachers'] = dict(one=teacher)
        term['teacher'] = 'one'
    else:
        cfg['teacher'] = teacher
    if i % 5 == 2:
        cfg.update(type='mmsokd.TSTDistiller', share=0.5, augmenter=part(ImageAugmenter))
    if i % 6 == 5:
        cfg['terms']['loss_second'] = dict(type='mmsokd.ATLoss', p=2.0, tap='backbone.layer1', refine=False)
    return Base(task, host, cfg)


HINT = dict(loss_hint=part(FitNetLoss, tap='backbone.layer3'))


def others() -> list[Base]:
    """A teacher that is run in a way of its own, and the distillers whose step is another."""
    fast = dict(
        cfg=POOL, autocast='bfloat16', channels_last=True, compile=dict(backend='eager', dynamic=False), stream=True
    )
    ramp = dict(shape='cosine', start=0.9, final=0.5, begin=0, end=8, by_epoch=True)
    stages = ['backbone.layer2', dict(teacher='backbone.layer3', student='backbone.layer3')]
    seams = dict(
        stages=stages, probability=ramp, transform={key: value for key, value in CONV.items() if key != 'resize'}
    )
    online = dict(cfg=model_config('Classification', False, 'teacher'), checkpoint=None, trust_checkpoint=False)
    models = dict(
        pace=dict(type='mmsokd.Distiller', teacher=fast),
        IAKD=dict(type='mmsokd.IAKDDistiller', teacher=dict(cfg=POOL, **PACE), **seams),
        EKD=dict(type='mmsokd.OnlineDistiller', online_teacher=online, refine=part(FeatureAugmentationNeck)),
        MetaKD=dict(type='mmsokd.Distiller', teacher=dict(cfg=POOL, **PACE), refine=part(KnowledgeRefiner)),
    )
    return [
        Base('Classification', name, dict(cfg, student=POOL, terms=copy.deepcopy(HINT), probe_size=64))
        for name, cfg in models.items()
    ]


def sftn(task: str, **kl: Any) -> Base:
    """A teacher's training, which knows no terms."""
    models = {side: model_config(task, False, side) for side in ('teacher', 'student')}
    cfg = part(SFTNTeacherTrainer, teacher=dict(cfg=models['teacher'], checkpoint=None), student=models['student'])
    cfg.update(stages=['backbone.layer1', 'backbone.layer2'], probe_size=64, kl=kl)
    return Base(task, 'SFTN', cfg)


HOOKS = (
    part(hooks.PolicySearchHook, search_iters=1),
    part(hooks.PolicySearchHook, search_epochs=1),
    part(hooks.PolicySearchHook, mode='unrolled', log_interval=1),
    part(hooks.DAMHook, draw_interval=1, num_images=1, log_interval=1),
    part(hooks.StudentCheckpointHook),
    part(hooks.GuardHook),
    dict(type='mmsokd.AtomicCheckpointHook', by_epoch=True, save_optimizer=True),  # values are MMEngine's to tell
    part(hooks.TSTHook, epochs=[0], max_batches=1),
)


def all_bases(folder: Path) -> list[Base]:
    """All of them, and their teachers' checkpoints in ``folder``."""
    for task, is_ld in dict.fromkeys((task, host == 'LD') for task, host in ROWS):
        state = pooled(task, is_ld, 'teacher').state_dict()
        torch.save(dict(state_dict=state), folder / f'{task}-{is_ld}.pth')
    distillers = [base(i, folder) for i in range(len(ROWS))]
    teachers = [
        sftn('Classification', tap='head.fc', tau=2.0, loss_weight=1.0),
        sftn('Segmentation', tap='decode_head.conv_seg', activation='softmax'),
        sftn('Detection', tap='bbox_head.retina_cls', activation='sigmoid'),
    ]
    return distillers + others() + teachers + [Base('Detection', None, hook) for hook in HOOKS]


def model_config(task: str, is_ld: bool, side: str) -> dict:
    use_scope(SCOPES[task])
    model = gfl(16 if side == 'student' else 24) if is_ld else getattr(TASKS[task], side)()
    return copy.deepcopy(model)  # the builders share some lists


@lru_cache(None)
def pooled(task: str, is_ld: bool, side: str) -> nn.Module:
    torch.manual_seed(0)
    return ROOT_MODELS.build(model_config(task, is_ld, side))


def filled(node: Any, start: Base, side: str = 'student') -> Any:
    """The config with models from the pool where it says so; the student's is a copy, since it learns."""
    if isinstance(node, dict):
        return {key: filled(value, start, 'student' if key == 'student' else 'teacher') for key, value in node.items()}
    if not isinstance(node, str) or node != POOL:
        return node
    model = pooled(start.task, start.host == 'LD', side)
    return copy.deepcopy(model) if side == 'student' else model


# ---- the mutations --------------------------------------------------------------------------------------------------


class Mutation(NamedTuple):
    """A mutated config, and what was done to it: at which key, and the new key that came in."""

    base: Base
    kind: str
    path: tuple[str, ...]
    new: str
    cfg: dict

    def __str__(self) -> str:
        node: Any = self.cfg
        for key in self.path:
            node = node.get(key, '-') if isinstance(node, dict) else node
        return f'{self.base.task} {self.base.host}: {self.kind} {".".join(self.path)} {self.new}, now {node!r:.90}'


class Odd:
    """No value of a config."""

    def __repr__(self) -> str:
        return 'Odd()'


ODD = (
    *(None, True, False, 0, 1, -1, 3, 7, 0.0, 0.5, 1.5, -0.5, math.nan, math.inf, -math.inf, 2**31, 2**62, -(2**62)),
    *(1e9, 1e300, -1e300, 1e-300, '', 'x', '1', 'None', 'bilinear', 'neck', b'x', 1j, Odd(), Odd, np.float32(0.5)),
    *([], (), [1], ['x'], [None], [[0, 1]], [[1, 1], [0, 1]], {}, {'x': 1}, {'type': 'x'}, {'type': None}, {1: 2}, {1}),
)
SYNONYMS = dict(
    tap=['taps', 'layer', 'student_tap'],
    student_tap=['student_taps', 'student_layer', 'tap'],
    teacher_tap=['teacher_taps', 'teacher_layer', 'tap'],
    adapter=['adaptor', 'connector'],
    loss_weight=['weight', 'loss_weights'],
    teacher=['teachers', 'teacher_model'],
    teachers=['teacher'],
    student=['architecture', 'model'],
    terms=['losses', 'distiller'],
    refine=['refiner', 'augment'],
    areas=['area', 'masks'],
    cfg=['config', 'model'],
    checkpoint=['ckpt', 'pretrained'],
    tau=['temperature', 'T'],
    num_areas=['k', 'topk'],
)
FOREIGN = ('student', 'cfg', 'norm_cfg', 'act_cfg')
TAP_KEYS = ('tap', 'student_tap', 'teacher_tap', 'at', 'student_at')
TAPS = (
    *('backbone.layer9', 'bakbone.layer3', 'backbone.layer4', 'backbone.layer1', 'neck[9]', 'neck[-9]', 'neck[0]'),
    *('backbone[0:0]', 'backbone', 'neck', 'bbox_head', 'head', 'decode_head', 'head.fc', 'head.loss_module', 'layer3'),
    *('data_preprocessor', 'student.backbone.layer3', 'teacher.neck', 'backbone..layer3', '.neck', 'neck.', 'neck['),
    *('neck[a]', 'neck[1.5]', ' neck', 'neck ', 'NECK', 'backbone/layer3', 'backbone.layer1.0.bn1', 'bbox_head[1]'),
    *('backbone.layer4[0]', 'backbone.layer4[1]', 'bbox_head.loss_cls', 'rpn_head.rpn_cls', 'backbone[4]'),
    *('decode_head.conv_seg', 'bbox_head.retina_cls', 'backbone[3]', 'backbone[0]', 'backbone[1:]', 'neck[0][0]'),
    *(['neck', 'neck'], ['neck', 'nek'], ['backbone.layer1', 'backbone.layer4'], ['neck', 3], [''], [[]], ('neck',)),
    *(['backbone.layer1', 'backbone.layer2', 'backbone.layer3'], ['backbone.layer4', 'backbone.layer1']),
)
TYPES = (
    *('mmsokd.FitNetLos', 'FitNetLoss', 'mmdet.FitNetLoss', 'mmsokd.KDLoss', 'mmsokd.CRDLoss', 'mmsokd.ReviewKDLoss'),
    *('mmsokd.ConvAdapter', 'mmsokd.LinearAdapter', 'mmsokd.SoKDAdapter', 'mmsokd.ReviewKDAdapter', 'mmsokd.Distiller'),
    *('mmsokd.ResizeAdapter', 'mmsokd.FeatureAugmentationNeck', 'mmsokd.DistinctiveAreaDetector', 'mmsokd.FGDLoss'),
    *('mmdet.FocalLoss', 'mmdet.FPN', 'mmdet.MSELoss', 'mmseg.CrossEntropyLoss', 'mmpretrain.LinearClsHead', 'MSELoss'),
    *(
        'nolib.KDLoss',
        'mmsokd.',
        '.KDLoss',
        'mmsokd.losses.KDLoss',
        'mmsokd.PolicySearchHook',
        'mmengine.EMAHook',
        'SGD',
    ),
    *('mmsokd.WRN', 'mmpretrain.ResNet', 'torch.nn.MSELoss', nn.MSELoss, nn.Identity, nn.Linear, nn.Conv2d, dict, len),
    *('mmsokd.MGDLoss', 'mmsokd.RKDLoss', 'mmsokd.LDLoss', 'mmsokd.DKDLoss', 'mmsokd.VIDLoss', 'mmsokd.CWDLoss', max),
)


def nodes(cfg: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Each value of the config: what holds it, under which key, and the key's path; a list's items have the list's."""
    items = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, list) else ()
    for key, value in items:
        here = (*path, key) if isinstance(cfg, dict) else path
        yield cfg, key, here
        yield from nodes(value, here)


def other_name(rng: random.Random, name: str) -> str:
    """A typing error, or what another library calls it."""
    i = rng.randrange(len(name))
    swapped = name[: i - 1] + name[i] + name[i - 1] + name[i + 1 :] if i else name[1:] + name[0]
    plural = name.removesuffix('s') if name.endswith('s') else f'{name}s'
    others = SYNONYMS.get(name, [name.upper(), f'{name}_', name.capitalize()])
    found = rng.choice([name[:i] + name[i + 1 :], name[:i] + 'q' + name[i + 1 :], swapped, plural, *others])
    return found if found not in ('', name) else f'{name}_'


def dropped(rng: random.Random, parent: Any, key: Any) -> None:
    del parent[key]


def renamed(rng: random.Random, parent: dict, key: str) -> None:
    parent[other_name(rng, key)] = parent.pop(key)


def doubled(rng: random.Random, parent: dict, key: str) -> None:
    parent[other_name(rng, key)] = parent[key]


def other_value(rng: random.Random, parent: Any, key: Any, values: tuple = ODD) -> None:
    parent[key] = copy.deepcopy(rng.choice(values))


def other_tap(rng: random.Random, parent: Any, key: Any, names: list[str]) -> None:
    index = rng.choice(['', '', '', '[0]', '[1]', '[-1]', '[:2]', '[0][0]'])
    parent[key] = rng.choice([rng.choice(names) + index, copy.deepcopy(rng.choice(TAPS))])


def mutate(rng: random.Random, start: Base) -> Mutation:
    """One mutation at a key of any depth."""
    cfg = copy.deepcopy(start.cfg)
    found = places(rng, start, cfg)
    special = [node for node in found if node[2][-1] in ('type', *TAP_KEYS)]  # few of so many keys
    parent, key, path = rng.choice(special if special and rng.random() < 0.3 else found)
    is_theirs = any(key in FOREIGN for key in path[:-1])  # a network of 2 ** 31 layers is not ours to refuse
    values = tuple(value for value in ODD if not (is_theirs and is_number(value) and abs(value) > 1e4))
    kinds: dict[str, Any] = dict(wrong_value=partial(other_value, values=values), dropped=dropped)
    if isinstance(parent, dict):
        kinds.update(renamed=renamed, doubled=doubled)
    if path[-1] in TAP_KEYS:
        models = [pooled(start.task, start.host == 'LD', side) for side in ('student', 'teacher')]
        names = [name for model in models for name, _ in model.named_modules() if name]
        kinds['wrong_tap'] = partial(other_tap, names=names)
    if path[-1] == 'type':
        kinds['wrong_type'] = partial(other_value, values=TYPES)
    kind = rng.choice(
        [*kinds, 'wrong_value', 'wrong_value', *[kind for kind in kinds if kind in ('wrong_tap', 'wrong_type')] * 5]
    )
    before = set(parent) if isinstance(parent, dict) else set()
    kinds[kind](rng, parent, key)
    new = ''.join(set(parent) - before) if isinstance(parent, dict) else ''
    return Mutation(start, kind, path, new, cfg)


def places(rng: random.Random, start: Base, cfg: dict) -> list[tuple[Any, Any, tuple[str, ...]]]:
    """The keys of one part of the config, chosen by chance; the models are written out where they are mutated."""
    if start.host is None:
        return [node for node in nodes(cfg) if node[2] != ('type',)]  # that one is MMEngine's to tell
    part = rng.choice(['terms'] * 5 + ['refine', 'areas', 'teacher', 'student', ''])
    is_ld = start.host == 'LD'
    if part == 'student':
        cfg['student'] = model_config(start.task, is_ld, 'student')
    if part == 'teacher' and rng.random() < 0.5:
        source = cfg.get('teacher') or cfg.get('online_teacher') or cfg['teachers']['one']
        source['cfg'] = model_config(start.task, is_ld, 'teacher')
    found = [node for node in nodes(cfg) if node[2] != ('type',)]
    below = [node for node in found if node[2][0].startswith(part) and part]
    return below or [node for node in found if len(node[2]) < 3]


# ---- the outcomes ---------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """``trains``, ``refused`` at build, or ``late``: it has built and does not train."""

    kind: str
    error: Exception | None = None


def outcome(mutation: Mutation) -> Outcome:
    for key in ('iter', 'max_iters', 'epoch', 'max_epochs'):  # what the last Runner left
        MessageHub.get_current_instance().update_info(key, 0)
    use_scope(SCOPES[mutation.base.task])
    torch.manual_seed(0)
    if mutation.base.host is None:
        return outcome_of_hook(mutation)
    try:
        model = MODELS.build(ConfigDict(filled(mutation.cfg, mutation.base)))
    except Exception as error:
        return Outcome('refused', error)
    try:
        one_step(model, mutation.base.task)
    except Exception as error:
        return Outcome('late', error)
    return Outcome('trains')


def one_step(model: nn.Module, task: str) -> None:
    """With the search on, as PolicySearchHook switches it, or a step of MetaRefineHook's before."""
    model.train()
    wrapper = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3))
    necks = dict(model.refine.necks.items()) if getattr(model, 'refine', None) is not None else {}
    if any(isinstance(neck, KnowledgeRefiner) for neck in necks.values()):
        runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, cfg={})
        hook = hooks.MetaRefineHook()
        hook.before_run(runner)
        hook.before_train(runner)
        hook.before_train_iter(runner, 0, BATCHES[task]())
    else:
        for neck in necks.values():
            neck.searching = True
    log = model.train_step(BATCHES[task](), wrapper)
    bad = {name: value for name, value in log.items() if 'loss' in name and not torch.isfinite(value).all()}
    assert not bad, bad


class Began(Hook):
    """Knows whether the training has begun."""

    priority = 'VERY_HIGH'
    seen = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.seen = True


NUMBERS = count()


@lru_cache(None)
def sokd_detector() -> nn.Module:
    cfg = dict(type='mmsokd.TSTDistiller', terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck')))
    cfg.update(student=POOL, teacher=POOL, probe_size=64)
    cfg.update(refine=dict(type='mmsokd.FeatureAugmentationNeck'), areas=dict(type='mmsokd.DistinctiveAreaDetector'))
    return MODELS.build(filled(cfg, Base('Detection', 'FitNet', {})))


def outcome_of_hook(mutation: Mutation) -> Outcome:
    """In a Runner, for one iteration; what comes before it counts as build, since hooks see the schedule only there."""
    began = Began()
    with tempfile.TemporaryDirectory() as folder:
        try:
            runner = Runner(
                copy.deepcopy(sokd_detector()),
                folder,
                train_dataloader=DataLoader([0], collate_fn=lambda _: raw_batch()),
                train_cfg=dict(by_epoch=True, max_epochs=1),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
                custom_hooks=[began, mutation.cfg],
                default_scope='mmdet',
                log_level='ERROR',
                experiment_name=f'fuzz_{next(NUMBERS)}',
            )
            runner.train()
        except Exception as error:
            return Outcome('late' if began.seen else 'refused', error)
    return Outcome('trains')


def fault(mutation: Mutation, found: Outcome) -> str | None:
    """What is wrong with an outcome, or None."""
    text = f'{type(found.error).__name__}: {found.error}'
    if found.kind == 'trains' or (found.kind == 'late' and is_the_models_own(mutation, found.error)):
        return None
    if found.kind == 'late':
        return f'fails in its first step: {text}'
    if not names_the_key(str(found.error), mutation):
        return f'does not name the key: {text}'
    if mutation.base.host is None or is_foreign(mutation):
        return None
    if not isinstance(found.error, REFUSALS):
        return f'is another class of error: {text}'
    return None if re.search(r'\bfound\b', str(found.error)) else f'does not say what was found: {text}'


def is_foreign(mutation: Mutation) -> bool:
    """Whether what is wrong is inside another library's part, which tells it in its own words."""
    return mutation.path[-1] == 'type' or any(key in FOREIGN for key in mutation.path[:-1])


def is_the_models_own(mutation: Mutation, error: Exception) -> bool:
    """Whether the student does not train without a distiller either, or the teacher's features are no numbers."""
    if mutation.path[0] != 'student':
        return is_foreign(mutation) and 'cfg' in mutation.path and isinstance(error, FloatingPointError)
    try:
        one_step(ROOT_MODELS.build(ConfigDict(mutation.cfg['student'])), mutation.base.task)
    except Exception:
        return True
    return False


def names_the_key(message: str, mutation: Mutation) -> bool:
    """Whether it has the key that was mutated or came in, or the closest one around it; a whole term's is ``terms``."""
    *around, last = mutation.path
    if mutation.base.host is None:  # MMEngine builds hooks, and knows of no key around the argument
        return any(name in message for name in (last, mutation.new) if name)
    keys = [(*around, last), (*around, mutation.new)] if mutation.new else [mutation.path]
    least = len(around) if not is_foreign(mutation) else min(len(around), 2 if around[0] == 'terms' else 1)
    keys += [tuple(around[:n]) for n in range(max(least, 1), len(around) + 1)]
    keys += [('model', mutation.new)] if mutation.new and not around else []
    if around == ['teachers'] and any(f"'{name}'" in message for name in (last, mutation.new)):  # a term asks for it
        return True
    return any(re.search(rf'(?<![\w.]){re.escape(".".join(key))}(?!\w)', message) for key in keys)


# ---- the tests ------------------------------------------------------------------------------------------------------


def drawn(bases: list[Base], seed: int, number: int) -> Mutation:
    """Three in forty are of a hook, the others of a distiller."""
    rng = random.Random(f'{seed}-{number}')
    kind = number % 40 in (0, 13, 26)
    return mutate(rng, rng.choice([b for b in bases if (b.host is None) == kind]))


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    return all_bases(tmp_path_factory.mktemp('teachers'))


@pytest.mark.slow
def test_what_is_not_mutated_trains(bases):
    for start in bases:
        found = outcome(Mutation(start, '', ('',), '', start.cfg))
        assert found.kind == 'trains', (start, found)


@pytest.mark.slow
def test_each_is_told_or_trains(bases):
    faults, counts, hosts, classes = [], Counter(), set(), set()
    for number in range(COUNT):
        mutation = drawn(bases, SEED, number)
        found = outcome(mutation)
        wrong = fault(mutation, found)
        if wrong:
            faults.append(f'{number}: {mutation}: {wrong}')
        counts[mutation.kind, found.kind] += 1
        hosts.add(mutation.base.host)
        classes |= {MODELS.get(mutation.base.cfg['type'])} if mutation.base.host is not None else set()
    print({f'{kind}, {found}': n for (kind, found), n in sorted(counts.items())})
    assert not faults, '\n'.join(faults)
    assert classes == {cls for cls in MODELS.module_dict.values() if isinstance(cls, type) and issubclass(cls, Face)}
    assert hosts == {host for _, host in ROWS} | {'pace', 'IAKD', 'EKD', 'MetaKD', 'SFTN', None}
    assert sum(n for (_, found), n in counts.items() if found == 'refused') > COUNT // 2
    assert sum(n for (_, found), n in counts.items() if found == 'trains') > COUNT // 10


def main(number: int, seed: int, only: int | None = None) -> None:
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        starts = all_bases(Path(folder))
        for i in range(number) if only is None else [only]:
            mutation = drawn(starts, seed, i)
            found = outcome(mutation)
            wrong = fault(mutation, found)
            counts[mutation.kind, found.kind + (' FAULT' if wrong else '')] += 1
            print('FAULT' if wrong else 'ok', i, mutation, '|', found.kind, wrong or found.error, flush=True)
            if only is not None and found.error is not None:
                traceback.print_exception(found.error)
    for (kind, found), n in sorted(counts.items()):
        print(f'{kind:12} {found:14} {n}')


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
