"""Every config loads, from the checkout and from the installed package alike, builds, and makes a step."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS, DefaultScope
from mmengine.registry import MODELS as ROOT_MODELS
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

import mmsokd
from mmsokd.distillers.schedule import Clock
from mmsokd.distillers.term import PerLevel
from mmsokd.registry import MODELS
from tests.builders import raw_batch, raw_cls_batch, raw_seg_batch, use_scope

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)
# Not what the models of a folder share, its data and schedule. CIFAR-100's have tests of their own.
MODEL_CONFIGS = [p for p in CONFIGS if p.stem not in (p.parent.name, 'shapes') and 'cifar' not in p.name]
NO_HOSTS = ('ekd', 'iakd', 'kcd', 'metakd', 'sokd', 'sftn', 'tst')  # folders of what is no loss
HOSTS = [p for p in CONFIGS if p.name.startswith(f'{p.parent.name}_') and p.parent.name not in NO_HOSTS]  # alone
FAMILIES = {
    'detection/sokd': {'faster-rcnn', 'retinanet', 'fcos', 'gfl'},
    'segmentation/sokd': {'pspnet', 'deeplabv3', 'deeplabv3plus', 'segformer'},
    'classification/sokd': {
        'resnet34-resnet18',
        'resnet50-mobilenet-v2',
        'deit-small-deit-tiny',
        'deit-small-resnet18',
    },
}


def quick_and_slow(paths, slow):
    """Parameters, of which ``slow`` ones stay out of the quick run."""
    return [pytest.param(path, marks=pytest.mark.slow) if slow(path) else path for path in paths]


# library -> a batch of its pictures, and their side in pixels
BATCHES = dict(mmdet=(raw_batch, 128), mmseg=(raw_seg_batch, 64), mmpretrain=(raw_cls_batch, 64))


def name(path):
    return str(path.relative_to(ROOT / 'configs'))


@cache
def read(path):
    return Config.fromfile(path)


def load(path):
    """The config, as a copy to change: reading one takes a third of a second."""
    return copy.deepcopy(read(path))


def is_distiller(cfg):
    return cfg.model.type in [f'mmsokd.{name}Distiller' for name in ('', 'SoKD', 'TST', 'IAKD')]


def trains_a_teacher(cfg):
    return cfg.model.type == 'mmsokd.SFTNTeacherTrainer'


def build_small(path):
    """Whole architectures for small pictures; without the teacher's weights, which are not to be had here."""
    cfg = load(path)
    use_scope(cfg.default_scope)
    make, side = BATCHES[cfg.default_scope]
    if is_distiller(cfg):
        cfg.model.teacher.checkpoint = None
        cfg.model.probe_size = side
        for term in cfg.model.get('terms', {}).values():
            if 'num_samples' in term:  # CRD's banks, whose 1.3 GB nobody looks at here
                term.num_samples = 16
    teacher = {}
    if trains_a_teacher(cfg) or 'online_teacher' in cfg.model:
        cfg.model.probe_size = side
    if trains_a_teacher(cfg):
        if 'cfg' in cfg.model.teacher:
            cfg.model.teacher.checkpoint = None
            teacher = cfg.model.teacher.cfg
    if cfg.model.get('data_preprocessor') is None:  # as MMEngine's Runner does
        cfg.model.data_preprocessor = cfg.get('data_preprocessor')
    for network in (cfg.model, cfg.model.get('student', {}), teacher):
        preprocessor = network.get('data_preprocessor')
        if 'size' in (preprocessor or {}):
            preprocessor.size = (side, side)
    model = ROOT_MODELS.build(cfg.model).train()
    if is_distiller(cfg):
        TERMS[path] = {name: describe(term) for name, term in model.terms.items()}
    return cfg, model, make(n=2, size=side)


TERMS = {}  # a distiller's config -> what was built of its terms


def terms_of(path):
    """What :func:`describe` says of each term; what an earlier test has built is not built again."""
    if path not in TERMS:
        build_small(path)
    return TERMS[path]


def describe(term):
    """A built term in plain values: all but the adapter, and the adapter."""
    losses = [
        (
            type(loss).__name__,
            {key: value for key, value in vars(loss).items() if not key.startswith('_')},
            {key: tuple(tensor.shape) for key, tensor in loss.state_dict().items()},
        )
        for loss in term.losses
    ]
    weights = [term.weight(Clock(i, 1000, 100)) for i in range(0, 1000, 5)]
    adapters = term.adapter if isinstance(term.adapter, PerLevel) else [term.adapter]
    return dict(
        compared=(losses, weights, term.student_tap, term.teacher_tap, term.teacher_name, term.pairs),
        adapter={type(adapter).__name__ for adapter in adapters},
        parameters=sum(p.numel() for p in term.adapter.parameters() if p.requires_grad),
    )


def build_training(cfg, model):
    """What MMEngine's Runner builds around the model."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    around = dict(optimizer=optim_wrapper.optimizer, epoch_length=10)
    for scheduler in schedulers:
        assert PARAM_SCHEDULERS.build(scheduler, default_args=around).optimizer is optim_wrapper.optimizer
    assert all(isinstance(HOOKS.build(hook), Hook) for hook in cfg.get('custom_hooks', []))


@pytest.mark.parametrize('path', CONFIGS, ids=name)
def test_loads(path):
    cfg = load(path)
    assert cfg.get('custom_imports', {}).get('imports', ['mmsokd']) == ['mmsokd']
    assert "'mmsokd." not in str(cfg.get('model')) or 'custom_imports' in cfg
    # CRD's banks are in each checkpoint: 1.3 GB on ImageNet, whose schedule writes a hundred of them
    if any(term.get('num_samples', 0) > 1e5 for term in cfg.get('model', {}).get('terms', {}).values()):
        assert 1 <= cfg.default_hooks.checkpoint.get('max_keep_ckpts', -1) <= 3


@pytest.mark.parametrize('folder', FAMILIES)
def test_there_is_one_of_each_family(folder):
    families = {path.name.split('_')[2] for path in MODEL_CONFIGS if name(path.parent) == folder}
    assert families == FAMILIES[folder]


# FitNet alone makes its step in the long run only: its SoKD form is made of it
@pytest.mark.parametrize('path', quick_and_slow(MODEL_CONFIGS, lambda p: p.parent.name == 'fitnet'), ids=name)
def test_makes_a_step(path):
    cfg, model, batch = build_small(path)
    build_training(cfg, model)
    data = model.data_preprocessor(batch, True)
    losses = model(**data, mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    forgotten = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not forgotten
    if is_distiller(cfg):
        check_distiller(cfg, model, log)


def check_distiller(cfg, model, log):
    if 'sync_bn' in cfg:
        model = convert_sync_batchnorm(model, cfg.sync_bn)  # as MMEngine's Runner does on several GPUs
    synchronised = {isinstance(m, SyncBatchNorm) for m in model.modules() if isinstance(m, _BatchNorm)}
    assert synchronised != {True, False}, "the student's norms are synchronised, SoKD's are not"
    hosts = {f'distill.{term}' for term in cfg.model.get('terms', {})}
    assert (hosts if cfg.model.get('keep_host', True) else {'sokd.loss_area'}) <= set(log)
    for term in model.terms.values():
        strides = [t.stride for _, t in term.specs]
        assert [s.stride for s, _ in term.specs] == strides
        assert strides == sorted(strides) or term.is_on_logits  # MTKD-SSR: the stages, and behind them the responses
        assert len(strides) >= 3 or term.student_tap != 'neck'
    assert model.student.data_preprocessor._enable_normalize, "the config's own data_preprocessor got lost"
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_segformers_new_modules_learn_as_fast_as_its_decode_head():
    """Its optimizer config chooses rates by parts of the parameters' names, which have others in a distiller."""
    path = ROOT / 'configs/segmentation/sokd/sokd_fitnet_segformer_mit-b4-mit-b0_4xb2-80k_cityscapes-512x1024.py'
    cfg, model, _ = build_small(path)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {p: group['lr'] for group in groups for p in group['params']}
    for prefix, rate in {'student.backbone': 6e-5, 'student.decode_head': 6e-4, 'terms': 6e-4, 'areas': 6e-4}.items():
        found = {rates[p] for n, p in model.named_parameters() if n.startswith(prefix)}
        assert list(found) == [pytest.approx(rate)], prefix


def test_mmdets_own_students_keep_their_names():
    """A distiller holds the plain student as it is: its weights go back and forth without renaming."""
    path = ROOT / 'configs/detection/demo/sokd_fitnet_retinanet_r18-narrow_shapes.py'
    cfg = Config.fromfile(path)
    plain = Config.fromfile(path.with_name('retinanet_r18-narrow_shapes.py'))
    cfg.model.teacher.checkpoint = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model, student = MODELS.build(cfg.model), MODELS.build(plain.model)
    assert model.student.state_dict().keys() == student.state_dict().keys()
    assert torch.equal(model.data_preprocessor.mean, student.data_preprocessor.mean)
    assert mmsokd.__version__
