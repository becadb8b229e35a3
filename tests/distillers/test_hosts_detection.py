"""Dense hosts on a detector's taps: their gradients below SoKD, and the boxes they see."""

import numpy
import pytest
import torch
from mmengine.optim import OptimWrapper

from mmsokd.adapters import ReviewKDAdapter
from tests.builders import distiller, gfl, losses_of, raw_batch, retinanet, step
from tests.reference import dense as reference

FEATURE_HOSTS = {
    'CWDLoss': dict(),
    'FGDLoss': dict(),
    'MGDLoss': dict(loss_weight=1e-3),
    'ReviewKDLoss': dict(),
    'VIDLoss': dict(),
}
LOGITS = dict(type='mmsokd.CWDLoss', tap='bbox_head.retina_cls', adapter=None, refine=False, areas=False)


def host(name, tap='neck', **kwargs):
    return dict(loss_host=dict(type=f'mmsokd.{name}', tap=tap, **{**FEATURE_HOSTS.get(name, {}), **kwargs}))


@pytest.mark.parametrize('name', FEATURE_HOSTS)
def test_feature_hosts_below_sokd(name):
    model = distiller(terms=host(name))
    assert model.refine.names == ['loss_host']
    assert 'loss_host' in model.areas
    model.train()
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=5e-3))
    for _ in range(2):
        step(model, wrapper)
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model)
    assert losses['distill.loss_host'].dtype == torch.float32
    model.parse_losses(losses)[0].backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, p in learning.items() if p.grad is None]  # DDP without find_unused_parameters
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in learning.values())


def test_logits_beside_a_refined_feature():
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck'), loss_host=LOGITS)
    model = distiller(terms=terms)
    assert model.refine.names == ['loss_hint']
    assert 'loss_host' not in model.areas
    assert not list(model.terms['loss_host'].parameters())
    assert losses_of(model)['distill.loss_host'].isfinite()


@pytest.mark.parametrize('kind', ['Distiller', 'SoKDDistiller'])
def test_reviewkd_brings_its_own_fusion(kind):
    model = distiller(kind, terms=host('ReviewKDLoss'))
    assert isinstance(model.terms['loss_host'].adapter, ReviewKDAdapter)
    plain = distiller(kind, terms=host('ReviewKDLoss', adapter=dict(type='mmsokd.ConvAdapter')))
    assert not isinstance(plain.terms['loss_host'].adapter, ReviewKDAdapter)


def maps(model, batch, read):
    """What ``read`` gives of student and teacher on a batch, level by level, and the boxes in pixels."""
    model.eval()
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        pair = [[x.double().numpy() for x in read(net, data['inputs'])] for net in (model.student, model.teacher)]
    return zip(*pair, strict=True), [sample.gt_instances.bboxes.tolist() for sample in data['data_samples']]


def in_cells(boxes, level):
    return [[[v * level.shape[-1] / 64 for v in box] for box in picture] for picture in boxes]


def test_fgd_sees_the_batchs_boxes():
    numbers = dict(alpha=0.5, beta=0.25, gamma=0.1, lambda_=0.01, temperature=0.5)
    model = distiller('Distiller', teacher=retinanet(16), terms=host('FGDLoss', adapter=None, **numbers))
    levels, boxes = maps(model, raw_batch(), lambda net, images: net.extract_feat(images))
    zero = dict.fromkeys(['key_bias', 'norm', 'norm_bias', 'up_bias', 'down_bias'], 0.0)
    still = dict(zero, key=numpy.zeros(16), down=numpy.zeros((8, 16)), up=numpy.zeros((16, 8)))  # as it starts
    expected = sum(reference.fgd(s, t, in_cells(boxes, s), (still, still), **numbers) for s, t in levels)
    torch.testing.assert_close(losses_of(model)['distill.loss_host'].item(), expected, rtol=1e-4, atol=0)


def test_ld_sees_the_batchs_boxes_and_the_scaled_logits():
    model = distiller('Distiller', student=gfl(16), teacher=gfl(24), terms=host('LDLoss', 'bbox_head[1]', tau=2.0))
    with torch.no_grad():
        for i, scale in enumerate(model.student.bbox_head.scales):
            scale.scale.fill_(1.5 + i)
    levels, boxes = maps(model, raw_batch(), lambda net, images: net.bbox_head(net.extract_feat(images))[1])
    expected = sum(reference.ld(s, t, in_cells(boxes, s), 2.0) for s, t in levels)
    torch.testing.assert_close(losses_of(model)['distill.loss_host'].item(), expected, rtol=1e-4, atol=0)


def test_what_does_not_fit_is_told_when_the_model_is_built():
    with pytest.raises(ValueError, match=r"channels of a GFL head, found 4; tap 'bbox_head\.gfl_reg'"):
        distiller('Distiller', terms=host('LDLoss', 'bbox_head.retina_reg'))
    with pytest.raises(ValueError, match='expected equal channels without an adapter, found 16 and 24'):
        distiller('Distiller', terms=host('ReviewKDLoss', adapter=None))
    other = retinanet(24)
    other['bbox_head']['num_classes'] = 4
    with pytest.raises(ValueError, match='expected equal channels without an adapter, found 3 and 4'):
        distiller('Distiller', teacher=other, terms=dict(loss_host=LOGITS))
    with pytest.raises(ValueError, match=r"terms\.loss_host\.gama: expected one of .*nearest: \['gamma'\]"):
        distiller('Distiller', terms=host('FGDLoss', gama=1.0))
