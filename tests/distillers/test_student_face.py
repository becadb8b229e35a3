"""To hooks, test-time wrappers and optimizers of the student's library a distiller looks like its student."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from mmdet.engine.hooks import SetEpochInfoHook, YOLOXModeSwitchHook
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmseg.models import SegTTAModel
from torch import nn

from mmsokd.distillers import Distiller
from mmsokd.hooks import GuardHook
from mmsokd.registry import MODELS
from tests.builders import classifier, distiller, losses_of, raw_cls_batch, raw_seg_batch, segmentor, use_scope

FITNET = dict(type='mmsokd.FitNetLoss', tap='neck')


class Runner(SimpleNamespace):
    """What the hooks read off a runner."""

    def __init__(self, model):
        dataset = SimpleNamespace(update_skip_type_keys=lambda keys: None)
        loader = SimpleNamespace(dataset=dataset)
        super().__init__(
            model=model,
            cfg={},
            epoch=7,
            max_epochs=8,
            train_dataloader=loader,
            logger=MMLogger.get_current_instance(),
        )


def test_yolox_switches_its_mode():
    model = distiller('Distiller')
    YOLOXModeSwitchHook().before_train_epoch(Runner(model))
    assert model.student.bbox_head.use_l1 is True


def test_the_epoch_reaches_the_student():
    model = distiller('Distiller')
    epochs = []
    model.student.set_epoch = epochs.append
    SetEpochInfoHook().before_train_epoch(Runner(model))
    assert epochs == [7]


def test_segmentation_with_test_time_augmentation():
    use_scope('mmseg')
    model = MODELS.build(
        dict(
            type='mmsokd.Distiller',
            student=segmentor(8),
            teacher=segmentor(8),
            terms=dict(loss_hint=dict(FITNET, tap='decode_head.bottleneck')),
            probe_size=64,
        )
    ).eval()
    batch = raw_seg_batch(1)
    flipped = copy.deepcopy(batch)
    views = dict(
        inputs=[[batch['inputs'][0]], [flipped['inputs'][0]]],
        data_samples=[batch['data_samples'], flipped['data_samples']],
    )
    for view in views['data_samples']:
        view[0].set_metainfo(dict(img_path='a.png', flip=False))
    wrapped = SegTTAModel(module=model)
    ours = wrapped.test_step(copy.deepcopy(views))
    plain = SegTTAModel(module=model.student).test_step(views)
    assert torch.equal(ours[0].pred_sem_seg.data, plain[0].pred_sem_seg.data)


def test_neither_has_it():
    model = distiller('Distiller')
    with pytest.raises(
        AttributeError, match="neither Distiller nor its student, a RetinaNet, has an attribute 'heads'"
    ):
        model.heads  # noqa: B018
    assert not hasattr(model, 'detector')
    model.student._hidden = 1
    assert not hasattr(model, '_hidden')
    assert not hasattr(Distiller.__new__(Distiller), 'backbone')  # as a copy is before it has anything


@pytest.mark.parametrize('weight', [dict(shape='cosine', stop=1), [(0.0, 1.0), (1.0, 0.5)], 2.0])
def test_it_can_be_pickled(weight):
    model = distiller(terms=dict(loss_hint=dict(FITNET, loss_weight=weight))).train()
    twin = pickle.loads(pickle.dumps(model))
    assert twin.bbox_head is twin.student.bbox_head
    torch.manual_seed(1)
    expected = losses_of(model)['distill.loss_hint']
    torch.manual_seed(1)
    torch.testing.assert_close(losses_of(twin)['distill.loss_hint'], expected)


def test_a_student_of_grey_pictures():
    grey = dict(type='ClsDataPreprocessor', mean=[127.5], std=[127.5])
    student, teacher = classifier(8, data_preprocessor=grey), classifier(16, data_preprocessor=grey)
    for model in (student, teacher):
        model['backbone'] = dict(model['backbone'], in_channels=1)
    use_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='mmsokd.Distiller',
            student=student,
            teacher=teacher,
            terms=dict(loss_hint=dict(FITNET, tap='backbone.layer3')),
            probe_size=64,
        )
    )
    batch = raw_cls_batch()
    batch['inputs'] = [picture[:1] for picture in batch['inputs']]
    assert losses_of(model, batch)['distill.loss_hint'] > 0


# ---- learning rates by layer ----------------------------------------------------------------------------------------

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
    out_type='cls_token',
)


def optimizer(model, constructor, **paramwise):
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1), constructor=constructor, paramwise_cfg=paramwise)
    if constructor is None:
        cfg.pop('constructor')
    return build_optim_wrapper(model, ConfigDict(cfg))


def test_mmpretrains_layer_decay():
    net = classifier(backbone=VIT, neck=None, head=dict(type='VisionTransformerClsHead', in_channels=16))
    use_scope('mmpretrain')
    terms = dict(loss_hint=dict(FITNET, tap='backbone.layers.1', adapter=dict(type='mmsokd.ConvAdapter')))
    model = MODELS.build(dict(type='mmsokd.Distiller', student=net, teacher=net, terms=terms, probe_size=32))
    wrapper = optimizer(model, 'LearningRateDecayOptimWrapperConstructor', layer_decay_rate=0.5)
    rates = {group['param_name']: group['lr'] for group in wrapper.param_groups if 'param_name' in group}
    # 3 layers between a stem and what follows: 5 depths, the last of them at the full rate
    assert rates['student.backbone.patch_embed.projection.weight'] == 0.5**4
    assert [rates[f'student.backbone.layers.{i}.ln1.weight'] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert rates['student.head.layers.head.weight'] == 1.0
    assert rates['terms.loss_hint.adapter.0.conv.conv.weight'] == 1.0


class ConvNeXt(nn.Module):
    """What mmdet's constructor looks at."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)])


def test_layer_decay_that_does_not_find_the_layers_is_refused():
    model = distiller('Distiller')
    model.student.backbone = ConvNeXt()
    runner = Runner(model)
    runner.train_dataloader.dataset = type('Data', (), {'__len__': lambda self: 1})()
    runner.optim_wrapper = optimizer(
        model, 'LearningRateDecayOptimizerConstructor', decay_rate=0.5, decay_type='stage_wise', num_layers=2
    )
    with pytest.raises(ValueError, match=r'optim_wrapper\.constructor: expected learning rates that differ'):
        GuardHook().before_train(runner)
    runner.optim_wrapper = optimizer(model, None)
    GuardHook().before_train(runner)
