"""The table of methods: its hosts are the registered ones, and its numbers those of the configs."""

import copy
from functools import cache
from inspect import signature

import pytest

from mmsokd.distillers.build import build_model
from mmsokd.losses import TermLoss
from mmsokd.recipes.methods import AREAS, HOSTS, Found, find_method, method_names
from mmsokd.recipes.pairing import make_plan
from mmsokd.recipes.survey import Survey
from mmsokd.recipes.writing import MEANINGS
from mmsokd.registry import MODELS
from tests.builders import classifier, gfl, retinanet, segmentor
from tests.distillers.test_host_table import ROWS
from tests.test_configs_hosts import CARD, load, on_card, with_sokd

TASKS = {'COCO': 'detection', 'Cityscapes': 'segmentation', 'ImageNet': 'classification', 'CIFAR-100': 'classification'}


def test_every_host_is_there_where_it_is_ticked():
    losses = {cls.__name__ for cls in MODELS.module_dict.values() if issubclass(cls, TermLoss)}
    assert {host.loss for hosts in HOSTS.values() for host in hosts.values()} == losses
    assert {
        (task.capitalize(), host.loss.removesuffix('Loss')) for task in HOSTS for host in HOSTS[task].values()
    } == set(ROWS)
    for hosts in HOSTS.values():
        assert all(name == host.loss.removesuffix('Loss').lower() for name, host in hosts.items())


def test_the_untried_are_those_without_a_config():
    """COCO, Cityscapes; ImageNet and CIFAR-100 together."""
    there = {(TASKS[on_card(path)], path.parent.name) for path in CARD}
    untried = {(task, name) for task, hosts in HOSTS.items() for name, host in hosts.items() if host.untried}
    assert untried == {(task, name) for task, hosts in HOSTS.items() for name in hosts} - there


def test_every_option_has_a_meaning():
    options = {key for hosts in HOSTS.values() for host in hosts.values() for key in host.options}
    assert options == set(MEANINGS)


def cifar(depth):
    return classifier(
        backbone=dict(type='mmsokd.CIFARResNet', depth=depth, widths=(4, 4, 8, 16)),
        head=dict(type='LinearClsHead', in_channels=16),
    )


@cache
def surveys(task, host):
    """A pair whose modules are called as in the configs' pair: RetinaNet (or GFL), PSPNet, ResNet, a CIFAR ResNet."""
    if task == 'COCO':
        models = [gfl(16), gfl(24)] if host == 'ld' else [retinanet(16, levels=5), retinanet(24, levels=5)]
    elif task == 'Cityscapes':
        models = [segmentor(8, classes=19), segmentor(12, channels=20, classes=19)]
    else:
        models = [classifier(8), classifier(12)] if task == 'ImageNet' else [cifar(8), cifar(14)]
    return [Survey(build_model('model', model), 256 if task == 'COCO' else 64) for model in models]


def plan_of(path, prefix=''):
    task, host = on_card(path), path.parent.name
    method = find_method('--method', f'{prefix}{host}', TASKS[task])
    return make_plan(method, *surveys(task, host), pictures=1281167)


# CIFAR-100's FitNet has a weight, areas and an adapter of its own, and its FM-KT a weight
PAIRS = [p for p in CARD if on_card(p) != 'CIFAR-100' or p.parent.name not in ('fitnet', 'fmkt')]


@pytest.mark.parametrize('path', PAIRS, ids=lambda p: f'{on_card(p)}-{p.parent.name}')
def test_terms_are_those_of_the_configs(path):
    plan = plan_of(path)
    cfg = load(path)
    theirs = copy.deepcopy(cfg['model']['terms'])
    for term in plan.terms:
        ours = dict(term.options, type=f'mmsokd.{term.host.loss}', loss_weight=eval(term.weight))
        if Found.CLASSES in term.host.options.values():
            ours['num_classes'] = 80
        if ours.pop('normalized', False):  # the configs have FitNet's plain error
            assert ours['loss_weight'] == (
                1 / 5 if on_card(path) == 'COCO' else 1.0
            )  # of five levels, which are summed
            ours['loss_weight'] = 1.0
        taps = [paths[0] if len(paths) == 1 else paths for paths in (term.student, term.teacher)]
        assert taps[0] == taps[1]
        assert term.adapter is None
        assert theirs.pop(term.name) == dict(ours, tap=taps[0])
    assert not theirs
    assert not plan.remarks
    assert not plan.method.host.untried
    rates = cfg['optim_wrapper'].get('paramwise_cfg', {}).get('custom_keys', {})
    assert rates == ({plan.method.host.slow: dict(lr_mult=1e-3)} if plan.method.host.slow else {})


LEVELS = {('COCO', 'pcka'): 3, ('ImageNet', 'reviewkd'): 4}  # of a term; five of a pyramid else, and one of a map


@pytest.mark.parametrize('path', PAIRS, ids=lambda p: f'{on_card(p)}-{p.parent.name}')
def test_plug_ins_are_those_of_the_configs(path):
    plan = plan_of(path, 'sokd-')
    model = load(with_sokd(path))['model']
    assert plan.refine == model.get('refine', dict(type='mmsokd.FeatureAugmentationNeck'))
    if plan.method.host.on_logits:
        assert plan.areas is None
        assert 'areas' not in model
        return
    theirs = model.get('areas', dict(type='mmsokd.DistinctiveAreaDetector'))
    ours = dict(plan.areas)
    assert ours.pop('normalization') == 'teacher'  # the configs have the plain error
    levels = LEVELS.get((on_card(path), path.parent.name), 5 if on_card(path) == 'COCO' else 1)
    assert ours.pop('area_weight', 1.0) == round(1 / levels, 3)  # they are summed
    if on_card(path) == 'COCO':
        assert theirs == dict(type='mmsokd.DistinctiveAreaDetector')
        assert ours == dict(theirs, num_areas=16)  # the default, written out
    elif (on_card(path), path.parent.name) == ('Cityscapes', 'fitnet'):
        assert ours == dict(theirs, feat_channels=64)  # narrower there, where two terms share the cost
    else:
        assert ours == theirs


def test_areas_of_detection_are_the_default():
    default = signature(MODELS.get('DistinctiveAreaDetector')).parameters['num_areas'].default
    assert AREAS['detection']['num_areas'] == default


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('kd', 'kd'),
        ('sokd-kd', 'sokd-kd'),
        ('SoKD_FitNet', 'sokd-fitnet'),
        ('skd', 'studentfriendlykd'),
        ('sokd-skd', 'sokd-studentfriendlykd'),
        ('MTKD-SSR', 'mtkdssr'),
        ('cwd-logits', 'cwdlogits'),
    ],
)
def test_names_are_forgiving(name, found):
    assert find_method('--method', name, 'segmentation').name == found


def test_all_names_are_found():
    for task in HOSTS:
        assert [find_method('--method', name, task).name for name in method_names(task)] == method_names(task)


@pytest.mark.parametrize(
    ('name', 'task', 'told'),
    [
        (
            'fitnt',
            'detection',
            "expected a method for detection, found 'fitnt'; nearest: 'fitnet'; there are fitnet, at,",
        ),
        ('sokd-fitnt', 'detection', "nearest: 'sokd-fitnet'"),
        ('sokd', 'detection', "found 'sokd'; nearest: 'sokd-"),
        (
            'dkd',
            'detection',
            "found 'dkd', which is made for classification and segmentation (docs/hosts.md tells why)",
        ),
        ('fgd', 'classification', "found 'fgd', which is made for detection"),
    ],
)
def test_other_names_are_told(name, task, told):
    with pytest.raises(ValueError, match='--method: expected') as error:
        find_method('--method', name, task)
    assert told in str(error.value)
