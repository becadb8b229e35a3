"""Tiny models, batches and distillers for the tests."""

import copy

import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

import mmsokd  # noqa: F401 (registers)
from mmsokd.export import export_student
from mmsokd.registry import MODELS

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32)
IMAGENET_SEG = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, size=(64, 64))


def use_scope(scope: str) -> None:
    """As a Runner does with ``default_scope``."""
    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != scope:
        init_default_scope(scope)


def classifier(base: int = 8, classes: int = 5, **kwargs) -> dict:
    """An mmpretrain ResNet-18 of a few thousand parameters."""
    use_scope('mmpretrain')
    model = dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        backbone=dict(type='ResNet', depth=18, base_channels=base, stem_channels=base, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', in_channels=base * 8, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)),
    )
    model.update(kwargs)
    model['head'] = dict(model['head'], num_classes=classes)
    return model


def segmentor(base: int = 8, channels: int = 12, classes: int = 4, **kwargs) -> dict:
    """An mmseg PSPNet on a ResNet-18 of stride 8 and a few thousand parameters."""
    use_scope('mmseg')
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', **IMAGENET_SEG),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            base_channels=base,
            stem_channels=base,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            norm_cfg=dict(type='BN'),
            contract_dilation=True,
        ),
        decode_head=dict(
            type='PSPHead',
            in_channels=base * 8,
            in_index=3,
            channels=channels,
            pool_scales=(1, 2),
            dropout_ratio=0,
            num_classes=classes,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        ),
        test_cfg=dict(mode='whole'),
    )
    model.update(kwargs)
    return model


def retinanet(channels: int = 16, base: int = 8, levels: int = 3, **kwargs) -> dict:
    """A RetinaNet of a few thousand parameters."""
    use_scope('mmdet')
    model = dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', **IMAGENET),
        backbone=dict(type='ResNet', depth=18, base_channels=base, norm_eval=False),
        neck=dict(
            type='FPN',
            in_channels=[base, base * 2, base * 4, base * 8],
            start_level=1,
            out_channels=channels,
            num_outs=levels,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=channels,
            feat_channels=channels,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[8, 16, 32, 64, 128][:levels],
            ),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(nms_pre=100, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10),
    )
    model.update(kwargs)
    return model


def gfl(channels: int = 16) -> dict:
    """A GFL detector of a few thousand parameters, with eight bins a side."""
    model = retinanet(channels, type='GFL')
    head = model['bbox_head']
    head.update(type='GFLHead', reg_max=7, norm_cfg=dict(type='GN', num_groups=8))
    head['loss_dfl'] = dict(type='DistributionFocalLoss', loss_weight=0.25)
    head['loss_cls'] = dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0)
    head['loss_bbox'] = dict(type='GIoULoss', loss_weight=2.0)
    head['anchor_generator']['octave_base_scale'] = 8
    model['train_cfg'] = dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1)
    return model


def raw_batch(n: int = 2, size: int = 64, seed: int = 0) -> dict:
    """What an mmdet data loader gives: uint8 pictures and samples with two boxes each."""
    generator = torch.Generator().manual_seed(seed)
    images, samples = [], []
    for i in range(n):
        images.append(torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator))
        gt = InstanceData(
            bboxes=torch.tensor([[4.0, 4.0, 40.0, 36.0], [20.0, 24.0, 60.0, 62.0]]), labels=torch.tensor([i % 3, 1])
        )
        shape = (size, size)
        meta = dict(img_id=i, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), pad_shape=shape)
        samples.append(DetDataSample(metainfo=meta, gt_instances=gt))
    return dict(inputs=images, data_samples=samples)


def raw_seg_batch(n: int = 2, size: int = 64, classes: int = 4, seed: int = 0) -> dict:
    """What an mmseg data loader gives."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator) for _ in range(n)]
    samples = []
    for _ in range(n):
        labels = torch.randint(0, classes, (1, size, size), generator=generator)
        labels[:, :, : size // 8] = 255  # ignored
        sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def distiller(kind: str = 'SoKDDistiller', **kwargs):
    """A distiller with a tiny student and a wider teacher; ``kwargs`` replace its keys."""
    from mmsokd.registry import MODELS

    cfg = dict(type=f'mmsokd.{kind}', terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck')), probe_size=128)
    cfg.update(copy.deepcopy(kwargs))
    for side, channels in (('student', 16), ('teacher', 24)):
        if side not in cfg:  # only then: a builder sets its library's scope
            cfg[side] = retinanet(channels)
    return MODELS.build(ConfigDict(cfg))


@torch.no_grad()
def make_it_speak(teacher, batch: dict) -> None:
    """A random teacher answers nearly the same to every picture: give it the batch's statistics and louder logits."""
    inputs = teacher.data_preprocessor(copy.deepcopy(batch), True)['inputs']
    teacher.train()
    for _ in range(10):
        teacher(inputs)
    teacher.eval()
    for name, parameter in teacher.named_parameters():
        if name.endswith(('conv_seg.weight', 'retina_cls.weight', 'gfl_reg.weight')):
            parameter.mul_(10)


def losses_of(model, batch: dict | None = None) -> dict:
    """One ``loss`` forward on a raw batch."""
    data = model.data_preprocessor(copy.deepcopy(batch or raw_batch()), True)
    return model(**data, mode='loss')


def step(model, optim_wrapper, batch: dict | None = None) -> dict:
    """One training step, as the Runner makes it."""
    return model.train_step(copy.deepcopy(batch or raw_batch()), optim_wrapper)


def raw_cls_batch(n: int = 2, size: int = 64, classes: int = 5, seed: int = 0) -> dict:
    """What an mmpretrain data loader gives: uint8 pictures with a class each, every third of a data set."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator) for _ in range(n)]
    labels = torch.randint(0, classes, (n,), generator=generator).tolist()
    samples = [DataSample(metainfo=dict(sample_idx=3 * i)).set_gt_label(label) for i, label in enumerate(labels)]
    return dict(inputs=images, data_samples=samples)


def assert_resumes(build, make=lambda seed: raw_cls_batch(4, seed=seed)) -> None:
    """A distiller of ``build`` goes on from its state and its optimizer's as if nothing had been.

    ``make`` gives a batch for a seed. Random numbers are drawn alike, as SeedHook sees to it.
    """

    def stepped(model, wrapper, seed):
        torch.manual_seed(seed)
        return step(model, wrapper, make(seed))

    def begun():
        model = build()
        return model, OptimWrapper(torch.optim.Adam(model.parameters(), lr=0.003))

    model, wrapper = begun()
    for seed in (1, 2):
        stepped(model, wrapper, seed)
    saved = copy.deepcopy((model.state_dict(), wrapper.state_dict()))
    other, other_wrapper = begun()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(saved[0], strict=True)
    other_wrapper.load_state_dict(saved[1])
    for seed in (3, 4):
        ours, theirs = (stepped(*pair, seed) for pair in ((model, wrapper), (other, other_wrapper)))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), seed


def assert_exports(model, plain: dict) -> None:
    """A distiller exports its student, whole, as the model of the config ``plain``."""
    exported = export_student(dict(state_dict=model.state_dict(), meta={}))['state_dict']
    built = MODELS.build(plain)
    built.load_state_dict(exported, strict=True)
    student = model.student.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in built.state_dict().items())


def without_scope(node):
    """Plain dicts and lists without the ``_scope_`` marks that MMEngine leaves on inherited parts."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [without_scope(value) for value in node]
    return node
