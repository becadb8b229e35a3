import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import LDLoss, ld_loss
from tests.losses.dense import arrays, assert_agrees, check_gradient, feats, samples
from tests.reference import dense as reference

BOXES = [[(4, 6, 30, 20), (10, 0, 17, 40)], []]  # pixels of a 40 x 48 batch
SHAPE = (2, 12, 5, 6)  # reg_max = 2


@pytest.mark.parametrize('tau', [1.0, 10.0])
@pytest.mark.parametrize('seed', range(2))
def test_against_the_slow_twin(tau, seed):
    s, t = feats(seed, SHAPE), 3 * feats(seed + 10, SHAPE)
    in_cells = [[[v / 8 for v in box] for box in picture] for picture in BOXES]
    value = LDLoss(12, tau)(s, t, samples=samples(BOXES))
    assert_agrees('LDLoss', value, reference.ld(*arrays(s, t), in_cells, tau))


def test_gradient_against_finite_differences():
    weight = (feats(3, (2, 1, 2, 3)) > 0).double()
    assert check_gradient(lambda s, t: ld_loss(s, t, weight, 2.0), feats(1, (2, 12, 2, 3)), feats(2, (2, 12, 2, 3)))


@given(st.integers(0, 999), st.floats(-20, 20))
def test_a_shift_of_one_sides_logits_changes_nothing(seed, shift):
    s, t = feats(seed, SHAPE), feats(seed + 1, SHAPE)
    moved = s.clone()
    moved[:, 3:6] += shift  # the second side's three bins
    torch.testing.assert_close(ld_loss(moved, t), ld_loss(s, t))
    moved[:, 5:7] += 1  # bins of two sides
    assert (ld_loss(moved, t) - ld_loss(s, t)).abs() > 1e-6


def test_zero_for_equal_distributions_only():
    s, t = feats(1, SHAPE), feats(2, SHAPE)
    assert ld_loss(t.clone(), t) < 1e-12
    assert ld_loss(s, t) > 1e-3


def test_outside_of_the_boxes_nothing_counts():
    loss, s, t = LDLoss(12), feats(1, SHAPE), feats(2, SHAPE)
    batch = samples([[(8, 8, 24, 24)], [(0, 0, 8, 8)]])
    other = feats(3, SHAPE)
    other[0, :, 1:3, 1:3], other[1, :, 0, 0] = s[0, :, 1:3, 1:3], s[1, :, 0, 0]
    torch.testing.assert_close(loss(other, t, samples=batch), loss(s, t, samples=batch))
    assert loss(s, t, samples=samples([[], []])) == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'4 \* \(reg_max \+ 1\) channels of a GFL head, found 18'):
        LDLoss(18)
    with pytest.raises(ValueError, match='found 4'):  # boxes themselves, as RetinaNet's
        LDLoss(4)
    with pytest.raises(ValueError, match=r'LDLoss\.tau: expected a number > 0, found 0'):
        LDLoss(12, tau=0)
