"""The configs of SFTN: what they train is the pair that they name, and each makes a step."""

from pathlib import Path

import pytest
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch.nn.modules.batchnorm import _BatchNorm

from mmsokd.distillers import SFTNTeacherTrainer
from tests.builders import raw_cls_batch, without_scope
from tests.test_configs import CONFIGS, build_small, build_training, load, quick_and_slow, read, trains_a_teacher
from tests.test_metafile import ROOT, SFTN, alone, link, measured, metafile, metric_of, published, readme_rows

PATHS = [path for path in CONFIGS if path.name.startswith('sftn_')]
MODELS = [model for folder in SFTN for model in metafile(folder)['Models']]
LOGITS = dict(mmpretrain='head.fc', mmdet='bbox_head.retina_cls', mmseg='decode_head.conv_seg')


def name(path):
    return path.stem


def step(cfg, model, batch):
    build_training(cfg, model)
    data = model.data_preprocessor(batch, True)
    total, log = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert total.isfinite()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    return log


@pytest.mark.parametrize('path', [path for path in PATHS if 'cifar' in path.name], ids=name)
def test_cifars_make_a_step(path):
    cfg = load(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = ROOT_MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).train()
        log = step(cfg, model, raw_cls_batch(2, 32, 100))
    assert {f'sftn.loss_{kind}{i}' for kind in ('branch', 'kl') for i in (1, 2)} <= set(log)


@pytest.mark.parametrize('path', quick_and_slow(PATHS, lambda p: 'coco' in p.name or 'cityscapes' in p.name), ids=name)
def test_has_the_papers_weights_and_leaves_before_each_stage_but_the_first(path):
    cfg = read(path)
    assert trains_a_teacher(cfg)
    assert not {'teacher_weight', 'branch_weight', 'detach_teacher'} & set(cfg.model)
    assert set(cfg.model.kl) <= {'tap', 'activation'}
    assert cfg.model.kl.tap == LOGITS[cfg.default_scope]
    assert {hook.type for hook in cfg.custom_hooks} == {'mmsokd.GuardHook', 'mmsokd.StudentCheckpointHook'}
    if 'cifar' in path.name:
        return
    _, model, _ = build_small(path)
    assert isinstance(model, SFTNTeacherTrainer)
    stages = [n for n, _ in model.teacher.backbone.named_children() if n.startswith('layer') and n != 'layer0']
    assert cfg.model.stages == [f'backbone.{stage}' for stage in stages[:-1]]
    assert (model.teacher_weight, model.branch_weight, model.detach_teacher) == (1, 1, False)
    assert [loss.tau for loss in model.kl.losses] == [1.0] * len(model.kl.losses)


def architecture(model):
    """A model but for what of its backbone is frozen."""
    model = without_scope(model)
    model['backbone'] = {k: v for k, v in model['backbone'].items() if k not in ('frozen_stages', 'norm_eval')}
    return model


@pytest.mark.parametrize('path', quick_and_slow(PATHS, lambda p: 'coco' in p.name or 'cityscapes' in p.name), ids=name)
def test_each_branch_bends_the_teacher_and_has_statistics_of_its_own(path, monkeypatch):
    told = []
    monkeypatch.setattr('mmsokd.distillers.sftn.print_log', lambda *told_now, **_: told.append(told_now))
    _, model, _ = build_small(path)
    assert not told
    norms = [x for branch in model.branches for x in branch.backbone.modules() if isinstance(x, _BatchNorm)]
    assert norms
    assert all(norm.training for norm in norms)


@pytest.mark.parametrize('model', MODELS, ids=lambda m: m['Name'])
def test_config_is_the_pair_of_the_metafile(model):
    meta, path = model['Metadata'], Path(model['Config'])
    cfg = read(ROOT / path)
    teacher = alone(meta['Teacher']['Config'])
    ours = cfg.model.teacher.cfg if 'cfg' in cfg.model.teacher else cfg.model.teacher
    assert architecture(ours) == architecture(teacher.model)
    assert without_scope(cfg.get('data_preprocessor')) == without_scope(teacher.get('data_preprocessor'))
    assert cfg.model.teacher.get('checkpoint') == meta['Teacher'].get('Weights')
    student, other = cfg.model.student.cfg, alone(meta['Student']['Config'])
    assert architecture(alone(student).model) == architecture(other.model)
    times = (cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters'))
    assert times == (meta.get('Epochs'), meta.get('Iterations'))

    (row,) = [row for row in readme_rows(str(path.parent)) if link(row['Config']) == path.name]
    metric = metric_of(str(path.parent))
    before = measured(meta['Teacher'], metric) if 'Weights' in meta['Teacher'] else 'none'
    found = row[f'{metric} (teacher before / teacher after / student from it)'].split(' / ')
    assert found == [before, *[measured({}, metric)] * 2]
    if before == 'none':
        assert row['Start'] == 'scratch'
        return
    assert link(row['Start']) == meta['Teacher']['Weights']
    pairs = published(meta['Teacher']['Config'].split('::')[0])[meta['Teacher']['Config']]
    assert (meta['Teacher']['Weights'], meta['Teacher']['Metrics'][metric]) in [(w, m.get(metric)) for w, m in pairs]
