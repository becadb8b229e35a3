"""The tools in tools/benchmark, on the smallest sizes: what their tables hold, and never how long anything takes."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from mmsokd.distillers.build import build_model

TOOLS = Path(__file__).resolve().parents[1] / 'tools/benchmark'
TINY = ['--case', 'cifar', '--side', '16', '--width', '0.125', '--batch-size', '2', '--rounds', '2', '--warm-up', '0']
MAPS = ['--batch-size', '3', '--channels', '8', '--side', '6', '--num-areas', '4', '--rounds', '2', '--warm-up', '1']


@pytest.fixture
def tool(monkeypatch, tmp_path, capsys):
    """Runs a tool in this process; gives what it printed as rows of cells, and what it wrote."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def run(name, *args):
        path = tmp_path / 'figures.json'
        monkeypatch.setattr(sys, 'argv', [name, *args, '--json', str(path)])
        importlib.import_module(name).main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
        return [line.strip('| ').split(' | ') for line in lines], json.loads(path.read_text())

    return run


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def middle(cell):
    return float(cell.split()[0])


def test_step(tool):
    rows, figures = tool('step', '--memory-rounds', '1', *TINY)
    own = figures['cifar']
    names = [*own['seconds']]
    assert names[:3] == ['student alone', 'teacher, whole', 'teacher, to the tap']
    assert [row[0] for row in rows] == ['step', '---', 'floor', *names]
    assert all(len(times) == 2 and min(times) > 0 for times in own['seconds'].values())
    table = {row[0]: row for row in rows[2:]}
    assert middle(table['floor'][2]) == 1
    # both parts of the floor were measured in the same rounds
    both = [
        sum(pair) for pair in zip(own['seconds']['student alone'], own['seconds']['teacher, to the tap'], strict=True)
    ]
    ratio = sum(a / b for a, b in zip(own['seconds']['plain host'], both, strict=True)) / 2
    assert middle(table['plain host'][2]) == pytest.approx(ratio, abs=0.01)
    # memory is the same on every machine
    total = {name: held['resident'] + held['peaks'][0] for name, held in own['memory'].items()}
    assert total['student alone'] < total['plain host'] < total['SoKD, frozen']
    assert total['teacher, to the tap'] <= total['teacher, whole']


def test_step_with_a_cached_teacher(tool):
    rows, figures = tool('step', '--memory-rounds', '1', *TINY, '--cached', 'float16')
    own = figures['cifar']
    assert [row[0] for row in rows[2:]] == ['floor', *own['seconds']]
    assert 'plain host, cached' in own['seconds']
    held = own['memory']
    assert held['plain host, cached']['resident'] == held['plain host']['resident']
    assert held['plain host, cached']['peaks'][0] <= held['plain host']['peaks'][0]


def test_each_case_is_there(module):
    cases = module('_cases')
    for case in cases.CASES.values():
        for path in (case.plain, case.sokd):
            assert (cases.CONFIGS / path).is_file()


def test_narrow_scales_every_width(module):
    model = dict(
        type='RetinaNet',
        backbone=dict(type='ResNet', depth=18),
        neck=dict(in_channels=[64, 128], out_channels=256),
        bbox_head=dict(in_channels=256, feat_channels=256, num_classes=80),
    )
    module('_cases').narrow(model, 0.25)
    assert model['backbone'] == dict(type='ResNet', depth=18, base_channels=16, stem_channels=16)
    assert model['neck'] == dict(in_channels=[16, 32], out_channels=64)
    assert model['bbox_head'] == dict(in_channels=64, feat_channels=64, num_classes=80)


def test_the_side_is_that_of_the_pictures_that_are_seen(module):
    """mmseg's preprocessor pads to its config's crop, of 512 x 1024 here, whatever comes in."""
    cases = module('_cases')
    cfg = cases.teacher_config('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    cases.narrow(cfg, 0.125)
    training = cases.Training(build_model('model', cfg), dict(type='OptimWrapper', optimizer=dict(type='SGD')), 48, 2)
    for side in (48, 64):
        training.resize(side, 2)
        seen = training.model.data_preprocessor(training.batch(), True)
        assert seen['inputs'].shape == (2, 3, side, side)
        assert all(sample.gt_sem_seg.data.shape == (1, side, side) for sample in seen['data_samples'])


def test_parts(tool):
    rows, figures = tool('parts', *MAPS)
    names = [row[0] for row in rows[2:]]
    assert names == [*figures['seconds']]
    assert len([name for name in names if name.startswith('op: ')]) == 9
    assert [row[2] for row in rows if row[0] == 'areas: decode and masks in loops'] == ['1']
    assert all(len(times) == 2 and min(times) > 0 for times in figures['seconds'].values())


@pytest.mark.parametrize('least', [0, 0.01])
def test_repeated(module, least):
    measure = module('_measure')
    ran = []
    variant, count = measure.repeated(measure.Variant(lambda x: ran.append(x) or time.sleep(0.001), lambda: 3), least)
    assert ran == [3, 3]  # to find out how long one takes
    variant.run(variant.prepare())
    assert ran == [3] * (2 + count)
    assert (count == 1) if least == 0 else (1 <= count <= 10)  # a busy machine takes longer than asked


def test_parts_has_every_loss(module):
    from mmsokd import losses
    from mmsokd.losses import TermLoss
    from mmsokd.registry import MODELS

    registered = {
        name for name, cls in MODELS.module_dict.items() if isinstance(cls, type) and issubclass(cls, TermLoss)
    }
    ours = {name for name in registered if MODELS.get(name).__module__.startswith(losses.__name__)}
    assert set(module('parts').loss_names()) == {name.rpartition('.')[2] for name in ours}


@pytest.mark.parametrize('seed', range(5))
def test_the_loops_make_the_same_masks(module, seed):
    parts = module('parts')
    generator = torch.Generator().manual_seed(seed)
    heat, size, offset = (torch.rand(3, k, 7, 9, generator=generator) for k in (2, 2, 2))
    ours = parts.areas(heat, size * 6, offset, 5)
    assert 0 < ours.mean() < 1
    torch.testing.assert_close(ours, parts.areas_in_loops(heat, size * 6, offset, 5), rtol=0, atol=0)


def scaled(tool, module, monkeypatch, axis, few):
    monkeypatch.setitem(module('scaling').SIZES, axis, few)
    rows, figures = tool('scaling', '--axis', axis, *TINY)
    heads = [row for row in rows if row[-1] == 'exponent']
    assert len(heads) == 2  # seconds and bytes
    assert all(min(times) > 0 for own in figures[axis]['seconds'].values() for times in own.values())
    return figures[axis]['bytes']


def test_scaling(tool, module, monkeypatch):
    held = scaled(tool, module, monkeypatch, 'batch_size', (1, 2))
    assert all(held[name]['1'] < held[name]['2'] for name in held)


@pytest.mark.slow
@pytest.mark.parametrize('axis', ['areas', 'terms'])
def test_the_floor_does_not_grow(tool, module, monkeypatch, axis):
    held = scaled(tool, module, monkeypatch, axis, (1, 4))
    assert held['floor']['1'] == held['floor']['4']
    assert held['SoKD, searching']['1'] <= held['SoKD, searching']['4']


@pytest.mark.slow
def test_scaling_over_ranks(tool):
    rows, figures = tool('scaling', '--axis', 'ranks', *TINY)
    assert all(
        [*own] == ['1', '2'] and all(min(times) > 0 for times in own.values())
        for own in figures['ranks']['seconds'].values()
    )
    assert rows[0][1:] == ['1', '2', 'exponent']


def test_growth(module):
    assert module('_measure').growth([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_peak_is_what_is_held_at_once(module):
    measure = module('_measure')

    def run(_):
        first = torch.zeros(1000)
        del first
        a, b = torch.zeros(2000), torch.zeros(500)
        return a.sum() + b.sum()

    found = measure.peak_bytes(run)
    assert 10_000 <= found < 11_000  # 2500 floats, and the sums


def test_peers_without_mmrazor(module, monkeypatch, tmp_path):
    peers = module('peers')
    monkeypatch.setitem(sys.modules, 'mmrazor', None)
    version = torch.__version__
    with pytest.raises(SystemExit, match=r'expected version 1\.0\.0'):
        peers.import_mmrazor(tmp_path)
    assert torch.__version__ == version


def test_peers_add_up_the_levels_of_the_host(module):
    peers = module('peers')
    ours = dict(loss=8.0, loss_cls=5.0, **{'distill.loss_cwd': 3.0, 'sokd.loss_area': 4.0})
    theirs = dict(loss=8.0, **{'student.loss_cls': 5.0, 'distill.loss_cwd_0': 1.0, 'distill.loss_cwd_1': 2.0})
    assert peers.loss_of_host(ours) == peers.loss_of_host(theirs) == 3
    assert peers.loss_of_host(dict(loss=5.0, loss_cls=5.0)) == 0


def test_peers_compare_cwd_as_the_config_has_it(module):
    """The temperature and the weight are the config's, or both sides would not train on the same loss."""
    from mmengine.config import Config

    peers = module('peers')
    path = module('_cases').CONFIGS / 'detection/cwd/cwd_retinanet_r101-r18_fpn_1x_coco.py'
    ours, theirs = Config.fromfile(path).model.terms.loss_cwd, peers.HOSTS['cwd'][0]
    assert (ours.tau, ours.loss_weight) == (theirs['tau'], theirs['loss_weight'])


def test_other_paces_of_the_teacher(tool):
    rows, figures = tool(
        'step', '--memory-rounds', '1', '--skip', 'SoKD, unrolled', '--pace', 'trim', 'autocast', *TINY
    )
    own = figures['cifar']['memory']
    assert [row[0] for row in rows if row[0].startswith('plain host')] == [
        'plain host', 'plain host, trim', 'plain host, autocast'
    ]  # fmt: skip
    assert own['plain host, trim']['resident'] < own['plain host']['resident']
