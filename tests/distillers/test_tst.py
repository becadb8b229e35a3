"""TSTDistiller: the doubled batch of each task, what follows the warp, who learns, and stage II's objective."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import PolygonMasks
from mmengine.optim import OptimWrapper
from torch.nn import functional as F

from mmsokd.augment.image_augmenter import ImageDraw
from mmsokd.distillers import Distiller
from mmsokd.registry import MODELS
from tests.builders import (
    classifier,
    distiller,
    gfl,
    losses_of,
    raw_batch,
    raw_cls_batch,
    raw_seg_batch,
    retinanet,
    segmentor,
    step,
    use_scope,
)
from tests.reference import flipped as reference

close = torch.testing.assert_close
AUX = dict(type='FCNHead', in_index=2, channels=8, num_convs=1, num_classes=4, norm_cfg=dict(type='BN'))
AUX['loss_decode'] = dict(type='CrossEntropyLoss', loss_weight=0.4)
LOGITS = dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc'))


def build(task, **kwargs):
    """A TSTDistiller of a task, and a raw batch for it."""
    if task == 'cls':
        cfg, batch = dict(student=classifier(8), teacher=classifier(12), terms=LOGITS), raw_cls_batch(4)
    elif task == 'seg':
        terms = dict(loss_kd=dict(type='mmsokd.KDLoss', tap='decode_head.conv_seg', tau=1.0))
        cfg, batch = dict(student=segmentor(), teacher=segmentor(12), terms=terms), raw_seg_batch()
    else:
        make = dict(det=retinanet, gfl=gfl)[task]
        cfg, batch = dict(student=make(16), teacher=make(24)), raw_batch()
    use_scope(dict(cls='mmpretrain', seg='mmseg').get(task, 'mmdet'))
    return distiller('TSTDistiller', **{**cfg, **kwargs}).train(), batch


def force(model, *ops, uniform=0.999, sign=1.0):
    """Let the augmenter draw these operators, which then fire."""
    k = len(ops)

    def sample(n):
        return ImageDraw(ops, torch.full((k,), uniform), torch.full((n, k), sign), torch.full((n, 2), 0.5))

    model.augmenter.sample = sample
    return model


def preprocess(model, batch):
    return model.data_preprocessor(copy.deepcopy(batch), True)


TASKS = ['cls', 'det', 'gfl', 'seg']


@pytest.mark.parametrize('task', TASKS)
def test_a_step_of_each_task(task):
    model, batch = build(task)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert not [n for n in names if not n.startswith(('student.', 'terms.'))]
    teacher = {n: p.clone() for n, p in model.teacher.state_dict().items()}
    total, log = model.parse_losses(losses_of(model, batch))
    total.backward()
    assert all(value.isfinite() for name, value in log.items() if 'loss' in name)
    assert not [n for n, p in model.named_parameters() if n in names and p.grad is None]
    step(model, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)), batch)
    assert all(torch.equal(teacher[n], p) for n, p in model.teacher.state_dict().items())


def test_the_batch_is_doubled_and_the_loss_is_the_mean_of_its_halves():
    model, batch = build('cls')
    data = preprocess(force(model, 'Invert', 'Color').eval(), batch)  # in eval: BatchNorm would mix the halves
    seen = []
    model.student.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    losses = model(**data, mode='loss')
    images, samples = model.augment(data['inputs'], data['data_samples'])
    assert torch.equal(seen[0], torch.cat([data['inputs'], images]))
    labels = torch.cat([s.gt_label for s in samples])
    halves = [F.cross_entropy(model.student(x, mode='tensor'), labels) for x in (data['inputs'], images)]
    close(losses['student.loss'], sum(halves) / 2, rtol=1e-5, atol=0)
    tau, kd = 4.0, 0.0
    for x in (data['inputs'], images):
        s, t = (m(x, mode='tensor').double() / tau for m in (model.student, model.teacher))
        kd += tau**2 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean() / 2
    close(losses['distill.loss_kd'], kd.float(), rtol=1e-3, atol=1e-6)
    assert abs(halves[0] - halves[1]) > 1e-4  # so that one half alone would be seen


def test_operators_see_pixels_and_not_normalised_inputs():
    model, batch = build('cls')
    data = preprocess(force(model, 'Invert'), batch)
    images, _ = model.augment(data['inputs'], data['data_samples'])
    inverted = preprocess(model, dict(batch, inputs=[255 - x for x in batch['inputs']]))
    close(images, inverted['inputs'], atol=1e-3, rtol=0)


NORMALIZING = dict(mean=[127.5] * 3, std=[127.5] * 3)


@pytest.mark.parametrize(
    ('preprocessor', 'scale', 'shift', 'found'),
    [
        (dict(), 1 / 58, -2.0, r'-2 to 2\.4'),  # normalised by the pipeline
        (NORMALIZING, 1 / 58, -2.0, r'-2 to 2\.4'),  # by both
        (dict(), 1 / 255, 0.0, '0 to 1'),
        (NORMALIZING, 256.0, 0.0, r'0 to 6\.53e\+04'),  # 16 bits
    ],
)
def test_what_are_no_pixels_is_told(preprocessor, scale, shift, found):
    preprocessor = dict(type='ClsDataPreprocessor', **preprocessor)
    nets = [classifier(width, data_preprocessor=preprocessor) for width in (8, 12)]
    model, batch = build('cls', student=nets[0], teacher=nets[1])
    batch['inputs'] = [x.float() * scale + shift for x in batch['inputs']]
    with pytest.raises(ValueError, match=rf'^data_preprocessor: expected pixels of 0 to 255 .* found {found}; let it'):
        losses_of(model, batch)


def test_the_preprocessor_tells_the_order_of_the_channels():
    """The same files, in one model as RGB and in the other as BGR, lose nine tenths of their colour alike."""
    changed = {}
    for to_rgb in (True, False):
        preprocessor = dict(type='ClsDataPreprocessor', to_rgb=to_rgb, **NORMALIZING)
        nets = [classifier(width, data_preprocessor=preprocessor) for width in (8, 12)]
        model, batch = build('cls', student=nets[0], teacher=nets[1])
        model.augmenter.magnitude.fill_(20.0)
        data = preprocess(force(model, 'Color', sign=-1.0), batch)
        changed[to_rgb], _ = model.augment(data['inputs'], data['data_samples'])
    loaded_as_rgb = dict(augmenter=dict(type='mmsokd.ImageAugmenter', rgb=True))
    assert build('cls', student=nets[0], teacher=nets[1], **loaded_as_rgb)[0].augmenter.rgb
    rgb = (torch.stack(batch['inputs']).float() / 127.5 - 1).flip(1)  # files are BGR
    grey = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    expected = 0.1 * rgb + 0.9 * grey[:, None]
    close(changed[True], expected, rtol=0, atol=2e-3)
    close(changed[False].flip(1), expected, rtol=0, atol=2e-3)


def test_what_are_pixels_is_not_refused():
    for scale, shift in [(1.4, -20.0), (0.05, 0.0), (0.0, 0.0)]:  # a colour transform, dark pictures, black ones
        model, batch = build('cls')
        batch['inputs'] = [x.float() * scale + shift for x in batch['inputs']]
        losses_of(model, batch)
    padded = retinanet(16)
    padded['data_preprocessor'] = dict(padded['data_preprocessor'], pad_value=114.0)  # after normalisation
    model, batch = build('det', student=padded)
    batch['inputs'][1] = batch['inputs'][1][:, :40, :56]
    batch['data_samples'][1].set_metainfo(dict(img_shape=(40, 56)))
    losses_of(model, batch)


def test_padding_stays_and_pictures_change_as_they_would_alone():
    model, batch = build('det')
    batch['inputs'][1] = batch['inputs'][1][:, :40, :56]
    batch['data_samples'][1].set_metainfo(dict(img_shape=(40, 56)))
    data = preprocess(force(model, 'Rotate', 'Equalize', 'Contrast'), batch)
    images, _ = model.augment(data['inputs'], data['data_samples'])
    pad = torch.ones(64, 64, dtype=torch.bool)
    pad[:40, :56] = False
    assert torch.equal(images[1][:, pad], data['inputs'][1][:, pad])
    small = dict(inputs=[batch['inputs'][1]], data_samples=[batch['data_samples'][1]])
    model.data_preprocessor.pad_size_divisor = 8
    data = preprocess(model, small)
    assert data['inputs'].shape[-2:] == (40, 56)
    alone, _ = model.augment(data['inputs'], data['data_samples'])
    close(images[1, :, :40, :56], alone[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize('left', [(500, 375), (40, 40)])
def test_a_shape_that_some_transform_left_behind_does_not_count(left):
    """mmpretrain's pictures fill their batch: after torchvision's crops img_shape is that of the file."""
    model, batch = build('cls')
    data = preprocess(force(model, 'Rotate', 'Cutout'), batch)
    right, _ = model.augment(data['inputs'], data['data_samples'])
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=left))
    images, _ = model.augment(data['inputs'], data['data_samples'])
    assert torch.equal(images, right)


@pytest.mark.parametrize('task', ['cls', 'det'])
def test_a_shape_that_does_not_fit_is_told(task):
    padding = dict(type='ClsDataPreprocessor', pad_size_divisor=32)
    more = dict(student=classifier(8, data_preprocessor=padding)) if task == 'cls' else {}
    model, batch = build(task, **more)
    data = preprocess(model, batch)
    data['data_samples'][1].set_metainfo(dict(img_shape=(40, 80)))
    with pytest.raises(ValueError, match=r'^data_samples\[1\]\.img_shape: expected .* 64 x 64 pixels, found 40 x 80; '):
        model.augment(data['inputs'], data['data_samples'])


def test_boxes_follow_the_warp():
    model, batch = build('det')
    data = preprocess(force(model, 'TranslateX'), batch)  # half of 150 / 331 of 64 pixels to the right
    images, samples = model.augment(data['inputs'], data['data_samples'])
    shift = 0.5 * 150 / 331 * 64
    left, top, right, bottom = data['data_samples'][0].gt_instances.bboxes.unbind(1)
    expected = torch.stack([left + shift, top, (right + shift).clamp(max=64), bottom], dim=1)
    close(samples[0].gt_instances.bboxes, expected, atol=1e-3, rtol=0)
    whole = math.floor(shift)
    left, right = (data['inputs'][..., 20 - k : 64 - k] for k in (whole + 1, whole))
    blend = left * (shift - whole) + right * (1 - shift + whole)  # the same content, a fraction of a pixel off
    close(images[..., 20:], blend, atol=0.02, rtol=0)
    both, doubled = model._doubled(data['inputs'], data['data_samples'])
    assert [len(both), len(doubled)] == [4, 4]
    assert [s is d for s, d in zip(data['data_samples'], doubled[:2], strict=True)] == [True, True]


@pytest.mark.parametrize('what', ['masks', 'boxes'])
def test_what_does_not_follow_a_warp_is_told_whatever_is_drawn(what):
    """Before the first draw that moves something, which may be many steps away."""
    model, batch = build('det')
    data = preprocess(force(model, 'Brightness'), batch)
    instances = data['data_samples'][1].gt_instances
    if what == 'masks':
        instances.masks = np.zeros((2, 64, 64), np.uint8)
    else:
        instances.bboxes = HorizontalBoxes(instances.bboxes)
    with pytest.raises(ValueError, match=r'^data_samples\.gt_instances\.(masks|bboxes): expected '):
        model(**data, mode='loss')


def test_label_maps_follow_the_warp():
    model, batch = build('seg')
    data = preprocess(force(model, 'TranslateY', sign=-1.0), batch)
    _, samples = model.augment(data['inputs'], data['data_samples'])
    shift = round(0.5 * 150 / 331 * 64)
    for old, new in zip(data['data_samples'], samples, strict=True):
        assert torch.equal(new.gt_sem_seg.data[:, : 64 - shift - 1], old.gt_sem_seg.data[:, shift:63])
        assert (new.gt_sem_seg.data[:, 64 - shift :] == 255).all()


def ignoring(label, **kwargs):
    nets = [segmentor(width, auxiliary_head=copy.deepcopy(AUX)) for width in (8, 12)]
    for net in nets:
        net['auxiliary_head']['in_channels'] = net['backbone']['base_channels'] * 4
        for head in ('decode_head', 'auxiliary_head'):
            net[head]['ignore_index'] = label
        net['data_preprocessor'] = dict(net['data_preprocessor'], seg_pad_val=label)
    nets[0]['auxiliary_head'].update(kwargs)
    return dict(student=nets[0], teacher=nets[1])


def test_what_a_warp_brings_in_has_the_label_that_the_heads_leave_out():
    model, batch = build('seg', **ignoring(3))
    for sample in batch['data_samples']:
        sample.gt_sem_seg.data[sample.gt_sem_seg.data == 255] = 3
    data = preprocess(force(model, 'TranslateX', sign=-1.0), batch)
    _, samples = model.augment(data['inputs'], data['data_samples'])
    shift = round(0.5 * 150 / 331 * 64)
    assert all((sample.gt_sem_seg.data[:, :, 64 - shift :] == 3).all() for sample in samples)
    assert all(value.isfinite() for name, value in losses_of(model, batch).items() if 'loss' in name)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dict(ignoring(3), augmenter=dict(type='mmsokd.ImageAugmenter', ignore_index=255)),
            r'^augmenter\.ignore_index: expected 3, the ignore_index of student\.decode_head, found 255$',
        ),
        (
            ignoring(255, ignore_index=3),
            r'^augmenter\.ignore_index: expected 3, the ignore_index of student\.auxiliary_head, found 255$',
        ),
    ],
    ids=['augmenter', 'heads'],
)
def test_two_labels_that_are_left_out_are_told(cfg, message):
    with pytest.raises(ValueError, match=message):
        build('seg', **cfg)


@pytest.mark.parametrize('samples', [None, []])
def test_pictures_without_annotations_are_told(samples):
    model, batch = build('cls')
    with pytest.raises(ValueError, match=r'^data_samples: expected one a picture, with its annotations, found none$'):
        model.loss(preprocess(model, batch)['inputs'], samples)


def test_a_part_of_the_batch():
    model, batch = build('cls', share=0.5)
    data = preprocess(model, batch)
    both, samples = model._doubled(data['inputs'], data['data_samples'])
    assert [len(both), len(samples)] == [6, 6]
    assert torch.equal(both[:4], data['inputs'])
    assert samples[4:] == samples[:2]


def test_the_whole_batch_tells_what_is_padding():
    """Pictures that the preprocessor has padded to the largest, which is not in the part that is changed."""
    model, batch = build('cls', share=0.5, augmenter=dict(type='mmsokd.ImageAugmenter', num_ops=14))
    model.augmenter.probability.fill_(9)
    shapes = [(40, 32), (48, 24), (64, 64), (16, 16)]
    for sample, shape in zip(batch['data_samples'], shapes, strict=True):
        sample.set_metainfo(dict(img_shape=shape))
    data = preprocess(model, batch)
    both, _ = model._doubled(data['inputs'], data['data_samples'])
    inside = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    for mask, (height, width) in zip(inside, shapes, strict=False):
        mask[:, :height, :width] = True
    moved = (both[4:] != data['inputs'][:2]).any(1, keepdim=True)
    assert moved[inside].any()
    assert not moved[~inside].any()


def test_composes_with_sokd_and_with_any_terms():
    terms = dict(
        loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck'),
        loss_fgd=dict(type='mmsokd.FGDLoss', tap='neck', loss_weight=1e-3),
    )
    areas, refine = dict(type='mmsokd.DistinctiveAreaDetector'), dict(type='mmsokd.FeatureAugmentationNeck')
    model, batch = build('det', terms=terms, refine=refine, areas=areas)
    losses = losses_of(model, batch)
    assert {'sokd.loss_agreement', 'sokd.aug', 'distill.loss_hint', 'distill.loss_fgd'} <= set(losses)
    assert all(value.isfinite() for name, value in losses.items() if name.startswith(('sokd', 'distill')))


def test_it_is_the_student_elsewhere():
    model, batch = build('cls')
    model.eval()
    data = preprocess(model, batch)
    close(model(data['inputs']), model.student(data['inputs']))


def test_stage_two_is_the_papers_objective():
    model, batch = build('cls')
    model.eval()
    chi = {name: value.clone().requires_grad_() for name, value in model.augmenter.tensors().items()}
    force(model, 'Color', 'ShearX', uniform=0.52)
    data = preprocess(model, batch)
    found = model.search_losses(data['inputs'], data['data_samples'], chi)
    images, samples = model.augment(data['inputs'], data['data_samples'])
    labels = torch.cat([s.gt_label for s in samples])
    p = {name: m(images, mode='tensor').softmax(1) for name, m in (('t', model.teacher), ('s', model.student))}
    rows = torch.arange(len(labels))
    close(found['teacher'], -p['t'][rows, labels].log().mean())
    close(found['student'], -(1 - p['s'][rows, labels] + 1e-8).log().mean())
    gradient = torch.autograd.grad(sum(found.values()), list(chi.values()))
    assert [int((g != 0).sum()) for g in gradient] == [2, 2]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize('task', ['det', 'gfl', 'seg'])
def test_stage_two_of_dense_tasks(task):
    """The gradient is that of finite differences along it, with the boxes and labels where they are [ours]."""
    model, batch = build(task)
    model.eval()
    force(model, 'Brightness', 'Contrast', uniform=0.7)
    data = preprocess(model, batch)

    def objective(values):
        chi = dict(model.augmenter.tensors(), magnitude=values)
        return sum(model.search_losses(data['inputs'], data['data_samples'], chi).values())

    start = torch.full((11,), -1.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(start), start)
    assert (gradient[[0, 2]].abs() > 1e-4).all()
    assert not gradient[[1, 3, 4, 5, 6, 7, 8, 9, 10]].any()
    direction = gradient / gradient.norm()
    with torch.no_grad():
        slope = (objective(start + 5e-3 * direction) - objective(start - 5e-3 * direction)) / 1e-2
    close(slope, gradient.norm(), rtol=0.05, atol=1e-3)


def faster_rcnn():
    use_scope('mmdet')
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config

    register_all_modules(init_default_scope=False)
    cfg = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.update(depth=18, base_channels=8, init_cfg=None)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.rpn_head.update(in_channels=16, feat_channels=16)
    cfg.roi_head.bbox_roi_extractor.update(out_channels=16)
    cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16, num_classes=3)
    return cfg


@pytest.mark.parametrize('loss', ['CrossEntropyLoss', 'FocalLoss'])
def test_the_background_of_a_dense_detector_does_not_decide(loss):
    """A student that is as sure of it as after training: in the paper's sum a thousand times the teacher's part."""
    nets = [retinanet(channels) for channels in (16, 24)]
    for net in nets:
        net['bbox_head'].update(loss_cls=dict(type=loss, use_sigmoid=True))
    model, batch = build('det', student=nets[0], teacher=nets[1])
    for network in (model.student, model.teacher):
        network.bbox_head.retina_cls.weight.data.zero_()
        network.bbox_head.retina_cls.bias.data.fill_(-6.0)
    data = preprocess(force(model.eval(), 'Brightness'), batch)
    found = model.search_losses(data['inputs'], data['data_samples'], model.augmenter.tensors())
    assert 0 < found['student'] < found['teacher']


def mask_rcnn():
    from mmengine.hub import get_config

    cfg = faster_rcnn()
    head = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model.roi_head
    head.mask_head.update(num_convs=1, in_channels=16, conv_out_channels=8, num_classes=3)
    head.mask_roi_extractor.update(out_channels=16)
    cfg.roi_head.update(mask_head=head.mask_head, mask_roi_extractor=head.mask_roi_extractor)
    cfg.train_cfg.rcnn.update(mask_size=28)
    cfg.update(type='MaskRCNN')
    return cfg


@pytest.mark.parametrize('kind', ['bitmaps', 'polygons'])
def test_instance_masks_follow_the_warp_and_search_too(kind):
    cfg = mask_rcnn()
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck'))
    model, batch = build('det', student=cfg, teacher=copy.deepcopy(cfg), terms=terms)
    for sample in batch['data_samples']:
        boxes = sample.gt_instances.bboxes.numpy()
        polygons = [[box[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in boxes]
        masks = PolygonMasks(polygons, 64, 64)
        sample.gt_instances.masks = masks if kind == 'polygons' else masks.to_bitmap()
    losses = losses_of(force(model, 'Rotate', 'Color'), batch)
    assert losses['loss_mask'] > 0
    assert all(value.isfinite().all() for value in [losses['loss_mask'], losses['loss_bbox']])
    force(model.eval(), 'TranslateX', 'Color')
    data = preprocess(model, batch)
    _, samples = model.augment(data['inputs'], data['data_samples'])
    for sample in samples:
        for box, mask in zip(sample.gt_instances.bboxes, sample.gt_instances.masks.to_ndarray(), strict=True):
            rows, columns = mask.nonzero()
            found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (found - box).abs().max() < 1.5
    model.rehearse_search(data['inputs'], data['data_samples'])
    masks, calls = model.student.roi_head.mask_head.loss_mask, []
    masks.register_forward_pre_hook(lambda _, args: calls.append(args))
    masks.register_forward_hook(lambda _, args, out: calls.append(out))
    chi = {name: value.clone().requires_grad_() for name, value in model.augmenter.tensors().items()}
    model.search_losses(data['inputs'], data['data_samples'], chi)
    (pred, target, label), found = calls
    logits = pred[torch.arange(len(label)), label].flatten().tolist()
    each = [reference.bce(x, t) for x, t in zip(logits, target.flatten().tolist(), strict=True)]
    close(found.item(), sum(each) / len(each), rtol=1e-4, atol=0)


def turned_round(path, pred, target, weight, avg_factor, reduction_override=None):
    """One call of a loss of Faster R-CNN's in plain Python: binary, softmax, or L1 of four sides."""
    pred, target, weight = (x.detach().tolist() for x in (pred, target, weight))
    if path == 'rpn_head.loss_cls':  # whose class 0 is an object, and 1 none
        each = [w * reference.bce(row[0], 1.0) for row, t, w in zip(pred, target, weight, strict=True) if t == 0]
    elif path.endswith('loss_cls'):
        each = [w * reference.softmax_ce(row, t) for row, t, w in zip(pred, target, weight, strict=True)]
    else:
        rows = zip(pred, target, weight, strict=True)
        each = [w * reference.l1(p, t, 1.0) for row in rows for p, t, w in zip(*row, strict=True)]
    return sum(each) / float(avg_factor)


def test_two_stage_detectors_search_too():
    """The student's summand is that of a plain twin, from what mmdet's heads hand to their losses."""
    cfg = faster_rcnn()
    model, batch = build('det', student=cfg, teacher=copy.deepcopy(cfg))
    chi = {name: value.clone().requires_grad_() for name, value in model.augmenter.tensors().items()}
    force(model.eval(), 'Brightness', 'Rotate', uniform=0.55)
    data = preprocess(model, batch)
    calls = []

    def listen(path):
        loss = model.student.get_submodule(path)
        loss.register_forward_pre_hook(lambda _, args, kwargs: calls.append((path, args, kwargs)), with_kwargs=True)

    for path in ('rpn_head.loss_cls', 'rpn_head.loss_bbox', *(f'roi_head.bbox_head.loss_{x}' for x in ('cls', 'bbox'))):
        listen(path)
    found = model.search_losses(data['inputs'], data['data_samples'], chi)
    assert Counter(path.split('.')[0] for path, _, _ in calls) == dict(rpn_head=10, roi_head=2)  # five levels
    assert all(args[2].sum() > 0 for path, args, _ in calls if path.startswith('roi_head'))
    expected = sum(turned_round(path, *args, **kwargs) for path, args, kwargs in calls)
    close(found['student'].item(), expected, rtol=1e-4, atol=0)
    gradient = torch.autograd.grad(sum(found.values()), list(chi.values()))
    assert all(g.isfinite().all() and g.any() for g in gradient)


def deformable_detr():
    use_scope('mmdet')
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config

    register_all_modules(init_default_scope=False)
    cfg = get_config('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py').model
    cfg.backbone.update(depth=18, base_channels=8, init_cfg=None)
    cfg.neck.update(in_channels=[16, 32, 64], out_channels=32)
    cfg.update(num_queries=10)
    attention = dict(embed_dims=32, num_heads=4, dropout=0.5)
    cfg.encoder.update(num_layers=1)
    cfg.encoder.layer_cfg.update(self_attn_cfg=dict(embed_dims=32, batch_first=True))
    cfg.decoder.update(num_layers=2)
    cfg.decoder.layer_cfg.update(self_attn_cfg=dict(attention, batch_first=True))
    cfg.decoder.layer_cfg.update(cross_attn_cfg=dict(embed_dims=32, batch_first=True))
    for layers in (cfg.encoder, cfg.decoder):
        layers.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32, ffn_drop=0.5)
    cfg.positional_encoding.update(num_feats=16)
    cfg.bbox_head.update(num_classes=3, embed_dims=32)
    return cfg


def test_detectors_whose_losses_ask_for_training_mode_search_too():
    """Deformable DETR gives its head other things for prediction. Norms and dropout stay as they are in eval mode."""
    cfg = deformable_detr()
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck'))
    model, batch = build('det', student=cfg, teacher=copy.deepcopy(cfg), terms=terms)
    for network in (model.student, model.teacher):
        network.init_weights()
    force(model.eval(), 'Brightness', 'Rotate', uniform=0.55)
    data = preprocess(model, batch)
    model.rehearse_search(data['inputs'], data['data_samples'])
    chi = {name: value.clone().requires_grad_() for name, value in model.augmenter.tensors().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = [model.search_losses(data['inputs'], data['data_samples'], chi) for _ in range(2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in ('teacher', 'student'))  # without dropout
    gradient = torch.autograd.grad(sum(found[0].values()), list(chi.values()))
    assert all(g.isfinite().all() and g.any() for g in gradient)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for network in (model.student, model.teacher) for module in network.modules())


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(share=0.0), 'share: expected a number'),
        (
            dict(augmenter=dict(type='mmsokd.FeatureAugmentationNeck')),
            r"^augmenter\.type: expected 'mmsokd\.ImageAugmenter' .*found FeatureAugmentationNeck$",
        ),
        (
            dict(augmenter=dict(type='mmsokd.ConvAdapter')),
            r"^augmenter\.type: expected .*of pictures, such as 'mmsokd\.ImageAugmenter', found 'mmsokd\.ConvAdapter'$",
        ),
        (dict(augmentor={}), r"^model\.augmentor: expected one of .*'share'.*'terms'.*nearest: \['augmenter'\]"),
        (dict(augmenter=dict(type='mmsokd.ImageAugmenter', num_op=3)), r'augmenter\.num_op: expected one of'),
        (dict(augmenter=dict(type='mmsokd.ImageAugmenter', num_ops=30)), r'augmenter\.num_ops: expected at most 14'),
    ],
)
def test_wrong_options_are_told(wrong, message):
    with pytest.raises(ValueError, match=message):
        build('cls', **wrong)


def test_it_needs_a_teacher():
    use_scope('mmpretrain')
    term = dict(type='mmsokd.KDLoss', student_tap='head.fc', teacher_tap='head.fc', teacher='student')
    cfg = dict(type='mmsokd.TSTDistiller', student=classifier(), terms=dict(loss_self=term), probe_size=64)
    with pytest.raises(ValueError, match='teacher: expected one, whose losses say'):
        MODELS.build(cfg)


def test_nothing_of_it_is_the_optimizers():
    model, _ = build('cls')
    plain = distiller('Distiller', student=classifier(8), teacher=classifier(12), terms=LOGITS)
    assert isinstance(model, Distiller)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert set(model.state_dict()) - set(plain.state_dict()) == {'augmenter._extra_state'}
