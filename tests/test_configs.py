"""Every config loads, from the checkout and from the installed package alike, builds, and makes a step."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmsokd
from mmsokd.registry import MODELS
from tests.builders import raw_batch

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)
DISTILLED = [p for p in CONFIGS if p.name.startswith(('sokd_', 'fitnet_')) and 'detection' in p.parts]


def name(path):
    return str(path.relative_to(ROOT / 'configs'))


@pytest.mark.parametrize('path', CONFIGS, ids=name)
def test_loads(path):
    cfg = Config.fromfile(path)
    assert cfg.get('custom_imports', {}).get('imports', ['mmsokd']) == ['mmsokd']
    assert path not in DISTILLED or 'custom_imports' in cfg


def test_there_is_one_of_each_family():
    families = {path.name.split('_')[2] for path in DISTILLED if path.parent.name == 'sokd'}
    assert families == {'faster-rcnn', 'retinanet', 'fcos', 'gfl'}


@pytest.mark.parametrize('path', DISTILLED, ids=name)
def test_makes_a_step(path):
    """Whole architectures on pictures of 128 pixels; without the teacher's weights, which are not to be had here."""
    cfg = Config.fromfile(path)
    if path.parent.name == 'sokd':
        assert cfg.model.teacher.checkpoint.startswith('https://download.openmmlab.com/')
    cfg.model.teacher.checkpoint = None
    cfg.model.probe_size = 128
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).train()
        batch = raw_batch(n=2, size=128)
        data = model.data_preprocessor(batch, True)
        losses = model(**data, mode='loss')
        total, log = model.parse_losses(losses)
        total.backward()
    assert total.isfinite()
    assert {'distill.loss_hint'} <= set(log)
    forgotten = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not forgotten
    strides = [t.stride for _, t in model.terms['loss_hint'].specs]
    assert strides == sorted(strides)
    assert len(strides) >= 3
    assert not any(p.requires_grad for p in model.teacher.parameters())


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
