"""What all dense losses must bear: small, narrow, flat and huge maps; and maps that do not fit are refused."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mmsokd.losses import CWDLoss, FGDLoss, LDLoss, MGDLoss, ReviewKDLoss, VIDLoss
from tests.losses.dense import samples

LOSSES = {
    'CWDLoss': CWDLoss,
    'FGDLoss': lambda: FGDLoss(8),
    'LDLoss': lambda: LDLoss(8),
    'MGDLoss': lambda: MGDLoss(8),
    'ReviewKDLoss': ReviewKDLoss,
    'VIDLoss': lambda: VIDLoss(8),
}


def call(loss, s, t, boxes=((3, 5, 30, 17),)):
    return loss(s, t, samples=samples([boxes] * len(s))) if loss.wants_samples else loss(s, t)


@pytest.mark.parametrize('shape', [(1, 8, 1, 1), (2, 8, 1, 4), (1, 8, 9, 2)])
@pytest.mark.parametrize('name', LOSSES)
def test_tiny_and_constant_maps_stay_finite(name, shape):
    loss = LOSSES[name]()
    for fill in (torch.randn(shape), torch.zeros(shape), torch.full(shape, 1e4)):
        for boxes in (((3, 5, 30, 17),), ()):
            s = fill.clone().requires_grad_()
            loss.zero_grad()
            value = call(loss, s, torch.ones(shape), boxes)
            value.backward()
            assert value.isfinite()
            assert all(x.grad.isfinite().all() for x in (s, *loss.parameters()))


@pytest.mark.parametrize('name', LOSSES)
def test_every_parameter_learns(name):
    loss = LOSSES[name]()
    call(loss, torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(2, 8, 5, 6)).backward()
    assert all(p.grad is not None for p in loss.parameters())  # DDP waits for all of them


@pytest.mark.parametrize('name', LOSSES)
def test_the_host_never_waits_for_the_device(name):
    with FakeTensorMode():  # fake tensors have no values: reading one raises, as a sync would wait
        loss, s, t = LOSSES[name](), torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(2, 8, 5, 6)
        call(loss, s, t).backward()


@pytest.mark.parametrize('name', LOSSES)
def test_gradient_leads_downhill(name):
    loss, t = LOSSES[name](), torch.randn(2, 8, 5, 6)
    s = torch.randn(2, 8, 5, 6, requires_grad=True)
    optimizer = torch.optim.Adam([s, *loss.parameters()], lr=0.05)
    values = []
    for _ in range(10):
        torch.manual_seed(1)  # MGD's mask
        optimizer.zero_grad()
        values.append(call(loss, s, t))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < values[0] - 0.05 * values[0].abs()


@pytest.mark.parametrize('name', LOSSES)
def test_shapes_must_fit(name):
    with pytest.raises(ValueError, match=r'student \(2, 8, 5, 6\), teacher \(2, 8, 5, 5\).*ConvAdapter'):
        call(LOSSES[name](), torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 5))
