import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import hcl_loss
from tests.losses.cases import CASES
from tests.losses.common import arrays, assert_agrees, feats, relative_error
from tests.reference import dense as reference


def test_weighted_against_the_slow_twin():
    errors = []
    for shape, _ in CASES['ReviewKDLoss'].shapes:
        s, t, weight = feats(1, shape), feats(2, shape), feats(3, (shape[0], 1, *shape[2:])).relu() + 0.01
        errors.append(relative_error(hcl_loss(s, t, weight), reference.hcl(*arrays(s, t, weight))))
    assert_agrees('hcl_loss, weighted', errors)


def test_gradient_of_a_weighted_loss():
    weight = (feats(3, (2, 1, 5, 3)) > 0).double()
    pair = [feats(seed, (2, 2, 5, 3)).requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(lambda s, t: hcl_loss(s, t, weight), pair, fast_mode=True)


@given(st.integers(0, 999), st.floats(-100, 100))
def test_what_lies_outside_of_the_areas_has_no_say(seed, noise):
    s, t, weight = feats(seed), feats(seed + 1), torch.zeros(2, 1, 5, 6)
    weight[:, :, 1:4, 2:4] = 1
    other = torch.where(weight > 0, s, s + noise * feats(seed + 2))
    torch.testing.assert_close(hcl_loss(other, t, weight), hcl_loss(s, t, weight))
