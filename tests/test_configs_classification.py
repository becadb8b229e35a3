"""The CIFAR-100 configs: the benchmark's pairs and numbers, and each of them makes a step."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from mmsokd.distillers.schedule import Clock
from mmsokd.registry import MODELS
from tests.builders import raw_cls_batch, without_scope
from tests.test_configs import build_training

FOLDER = Path(__file__).parents[1] / 'configs/classification'
PLAIN = sorted((FOLDER / 'cifar_zoo').glob('*.py'))
FITNET = sorted((FOLDER / 'fitnet').glob('*_cifar100.py'))
SOKD = sorted((FOLDER / 'sokd').glob('*_cifar100.py'))
OTHERS = sorted(
    p
    for p in FOLDER.glob('*/*_cifar100.py')
    if p.parent.name not in ('cifar_zoo', 'fitnet', 'sftn', 'sokd', 'tst', '_base_')
)
TST = sorted((FOLDER / 'tst').glob('*_cifar100.py'))
SLOW = ('mobilenet', 'shufflenet')  # students that the benchmark trains at a smaller rate
# channels of the teachers' hint layer, by their papers' widths
HINT = {'wrn-40-2': 64, 'resnet56': 32, 'resnet110': 32, 'resnet32x4': 128, 'vgg13': 256, 'resnet50': 512}

# teacher, student, and what RepDistiller's README prints for both and for FitNet
PUBLISHED = {
    ('wrn-40-2', 'wrn-16-2'): ('75.61', '73.26', '73.58'),
    ('wrn-40-2', 'wrn-40-1'): ('75.61', '71.98', '72.24'),
    ('resnet56', 'resnet20'): ('72.34', '69.06', '69.21'),
    ('resnet110', 'resnet32'): ('74.31', '71.14', '71.06'),
    ('resnet32x4', 'resnet8x4'): ('79.42', '72.50', '73.50'),
    ('vgg13', 'vgg8'): ('74.64', '70.36', '71.02'),
    ('vgg13', 'mobilenet-v2'): ('74.64', '64.60', '64.14'),
    ('resnet50', 'mobilenet-v2'): ('79.34', '64.60', '63.16'),
    ('resnet32x4', 'shufflenet-v1'): ('79.42', '70.50', '73.59'),
    ('resnet32x4', 'shufflenet-v2'): ('79.42', '71.82', '73.54'),
}


def pair_of(path):
    pairs = {f'{teacher}-{student}': (teacher, student) for teacher, student in PUBLISHED}
    return pairs[path.name.removesuffix('_1xb64_cifar100.py').split('_')[-1]]


def build_small(path):
    """Without the teacher's weights, which nobody publishes for these configs."""
    cfg = Config.fromfile(path)
    if 'teacher' in cfg.model:
        cfg.model.teacher.checkpoint = None
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return cfg, MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).train()


def step(model):
    batch = model.data_preprocessor(raw_cls_batch(2, 32, 100), True)
    total, log = model.parse_losses(model(**batch, mode='loss'))
    total.backward()
    assert total.isfinite()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert {p.requires_grad for p in model.teacher.parameters()} == {hasattr(model, 'online_teacher')}
    return log


def plain(name):
    return Config.fromfile(FOLDER / f'cifar_zoo/{name}_1xb64_cifar100.py')


@pytest.mark.parametrize('path', [*PLAIN, *FITNET, *SOKD, *TST], ids=lambda p: p.stem)
def test_trains_as_the_benchmark_does(path):
    cfg = without_scope(Config.fromfile(path).to_dict())
    student = path.stem if path in PLAIN else pair_of(path)[1]
    lr = 0.01 if student.startswith(SLOW) else 0.05
    assert cfg['optim_wrapper']['optimizer'] == dict(type='SGD', lr=lr, momentum=0.9, weight_decay=5e-4)
    assert cfg['param_scheduler'] == dict(type='MultiStepLR', by_epoch=True, milestones=[150, 180, 210], gamma=0.1)
    assert cfg['train_cfg']['max_epochs'] == 240
    assert cfg['default_scope'] == 'mmpretrain'
    assert cfg['custom_imports']['imports'] == ['mmsokd']
    data = cfg['train_dataloader']
    assert data['batch_size'] == cfg['auto_scale_lr']['base_batch_size'] == 64
    assert data['dataset']['type'] == 'CIFAR100'
    crop, flip, _ = data['dataset']['pipeline']
    assert crop == dict(type='RandomCrop', crop_size=32, padding=4)
    assert flip == dict(type='RandomFlip', prob=0.5, direction='horizontal')
    for loader in ('val_dataloader', 'test_dataloader'):
        assert cfg[loader]['dataset']['split'] == 'test'
        assert cfg[loader]['batch_size'] == 64


def test_there_are_the_benchmarks_pairs():
    for paths in (FITNET, SOKD):
        assert [pair_of(path) for path in paths] == sorted(PUBLISHED, key='-'.join)


@pytest.mark.parametrize('path', PLAIN, ids=lambda p: p.stem)
def test_the_plain_ones_train(path):
    """Model and step: tests/backbones/test_zoo.py."""
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        build_training(cfg, ROOT_MODELS.build(cfg.model))


@pytest.mark.parametrize('path', FITNET, ids=lambda p: p.stem)
def test_fitnet_as_in_the_benchmark(path):
    """RepDistiller: `--distill hint -b 100`, `hint_layer=2`, a regressor of conv, norm and ReLU for every pair."""
    cfg, model = build_small(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        build_training(cfg, model)
    term = model.terms['loss_hint']
    assert term.weight(Clock()) == 100
    (adapter,) = term.adapter
    ((ours, theirs),) = term.specs
    conv, norm, act = adapter.conv.children()
    doubled = ours.size != theirs.size  # by ConvTranspose2d(kernel_size=4, stride=2, padding=1)
    assert isinstance(conv, nn.ConvTranspose2d if doubled else nn.Conv2d)
    assert (conv.kernel_size[0], conv.stride[0], conv.padding[0]) == ((4, 2, 1) if doubled else (1, 1, 0))
    assert conv.out_channels == theirs.channels
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(act, nn.ReLU)
    assert step(model)['distill.loss_hint'] > 0


@pytest.mark.parametrize('path', SOKD, ids=lambda p: p.stem)
def test_sokd_as_in_the_authors_fork(path):
    cfg = Config.fromfile(path)
    teacher, student = pair_of(path)
    assert without_scope(cfg.model.student.to_dict()) == without_scope(plain(student).model.to_dict())
    assert Path(cfg.model.teacher.cfg).resolve() == (FOLDER / f'cifar_zoo/{teacher}_1xb64_cifar100.py').resolve()
    assert cfg.model.teacher.checkpoint == f'work_dirs/{teacher}_1xb64_cifar100/epoch_240.pth'
    (search,) = [hook for hook in cfg.custom_hooks if hook.type == 'mmsokd.PolicySearchHook']
    assert search.search_epochs == 20
    shared = Config.fromfile(FOLDER.parent / '_base_/sokd.py')
    assert [hook.type for hook in cfg.custom_hooks] == [hook.type for hook in shared.custom_hooks]


@pytest.mark.parametrize('path', SOKD, ids=lambda p: p.stem)
def test_makes_a_step(path):
    cfg, model = build_small(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        build_training(cfg, model)
    log = step(model)
    # the area loss stands in the host's place
    assert {'loss', 'sokd.loss_agreement', 'sokd.loss_area'} <= set(log)
    assert 'distill.loss_hint' not in log
    assert log['sokd.loss_area'] > 0

    ((ours, theirs),) = model.terms['loss_hint'].specs
    vgg = pair_of(path)[0] == 'vgg13'
    assert theirs.size == ((8, 8) if vgg else (16, 16))
    assert ours.size == ((8, 8) if pair_of(path)[1].startswith(('vgg', *SLOW)) else (16, 16))
    detector = model.areas.detectors['loss_hint']
    assert detector.num_areas == 8
    assert detector.loss_weights['agreement'] == detector.loss_weights['area'] == 1000
    assert detector.normalization == 'all'

    (head,) = detector.heads
    assert head.heat[-1].out_channels == 100
    assert model.terms['loss_hint'].weight(Clock()) == 1

    # A feature behind a ReLU is reached by an adapter with a ReLU, as in the fork; WRN's sums are signed.
    (adapter,) = model.terms['loss_hint'].adapter
    assert (adapter.convs[-1].norm_cfg is None) == pair_of(path)[0].startswith('wrn')
    width = min(theirs.channels, 256)  # the feature's own as in the fork; the limit is ours
    assert head.heat[0].out_channels == width
    assert [conv.conv.out_channels for conv in adapter.convs] == [width, theirs.channels]
    assert theirs.channels == HINT[pair_of(path)[0]]
    assert adapter.resize == ('conv' if ours.size != theirs.size else None)
    assert (ours.size != theirs.size) == (pair_of(path)[1].startswith(SLOW) and not vgg)


@pytest.mark.parametrize('path', OTHERS, ids=lambda p: p.stem)
def test_other_hosts_make_a_step(path):
    cfg, model = build_small(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        build_training(cfg, model)
    for key, value in (('max_iters', 2), ('iter', 1)):  # in the middle: some weights begin at 0
        MessageHub.get_current_instance().update_info(key, value)
    log = step(model)
    assert all(log[f'distill.{name}'] > 0 for name in cfg.model.get('terms', {}))
    assert ('iakd.swapped' in log) == (path.parent.name == 'iakd')


@pytest.mark.parametrize('path', TST, ids=lambda p: p.stem)
def test_tst_as_in_the_paper(path):
    """Temperature 4, weight 1, bursts before the epochs 30 and 90 of 30 passes each; none in the control."""
    cfg, model = build_small(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        build_training(cfg, model)
    (burst,) = [hook for hook in cfg.custom_hooks if hook.type == 'mmsokd.TSTHook']
    expected = dict(epochs=[]) if 'untrained' in path.name else dict(epochs=[30, 90], passes=30)
    assert burst == dict(type='mmsokd.TSTHook', **expected)
    assert model.terms['loss_kd'].weight(Clock()) == 1
    assert model.terms['loss_kd'].losses[0].tau == 4
    assert model.augmenter.num_ops == 4
    assert step(model)['distill.loss_kd'] > 0


def test_readme_lists_the_pairs_with_what_others_published():
    text = (FOLDER / 'sokd/README.md').read_text()
    table = text[text.index('| Pair |') :].split('\n\n')[0]
    header, _rule, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
    assert header[:4] == ['Pair', 'Teacher', 'Student', 'FitNet']
    assert [tuple(row[1:4]) for row in rows] == list(PUBLISHED.values())


def test_readme_of_the_zoo_tells_what_others_published():
    text = (FOLDER / 'cifar_zoo/README.md').read_text()
    found = {name: number for number, name in re.findall(r'\| (\d\d\.\d\d) \|[^\n]*\((.+)_1xb64', text)}
    assert len(found) == len(PLAIN)
    for (teacher, student), (theirs, ours, _fitnet) in PUBLISHED.items():
        assert (found[teacher], found[student]) == (theirs, ours)
