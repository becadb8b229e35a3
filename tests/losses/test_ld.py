import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.models.losses import KnowledgeDistillationKLDivLoss

from mmsokd.losses import LDLoss, ld_loss
from mmsokd.losses.boxes import boxes_in_cells
from mmsokd.losses.ld import inside_boxes
from tests.losses.common import boxed, feats

BOXES = [[(4, 6, 30, 20), (10, 0, 17, 40)], [(8, 8, 40, 24)]]  # pixels of a 40 x 48 batch
SHAPE = (2, 12, 5, 6)  # reg_max = 2


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


def test_against_mmdets_loss():
    """Which takes the mean over sides and bins, and with ``avg_factor=4`` the sum over the positions, as its LDHead."""
    s, t = feats(1, SHAPE).float(), feats(2, SHAPE).float()
    inside = inside_boxes(boxes_in_cells(boxed(BOXES), t), (5, 6), reach=2)
    positions = inside[:, 0].nonzero()
    assert 0 < len(positions) < inside_boxes(boxes_in_cells(boxed(BOXES), t), (5, 6)).sum()
    pred, soft = (torch.cat([x[i, :, y, c].view(4, 3) for i, y, c in positions.tolist()]) for x in (s, t))
    published = KnowledgeDistillationKLDivLoss(T=10)(pred, soft, weight=torch.ones(len(pred)), avg_factor=4.0)
    value = LDLoss(12, tau=10.0)(s, t, samples=boxed(BOXES))
    torch.testing.assert_close(value * len(positions) / 3, published, rtol=1e-5, atol=0)


def test_positions_whose_sides_the_distributions_do_not_reach_do_not_count():
    boxes = torch.tensor([[[0.5, 1.0, 4.5, 3.0]]])  # 4 cells wide: from column 1 its right side is 3.5 away
    inside = inside_boxes(boxes, (5, 6), reach=3)
    expected = torch.zeros(5, 6)
    expected[1:3, 2:4] = 1  # from column 4 the left side is 3.5 away; rows 1 and 2 reach both sides
    assert torch.equal(inside[0, 0], expected)


def test_outside_of_the_boxes_nothing_counts():
    loss, s, t = LDLoss(12), feats(1, SHAPE), feats(2, SHAPE)
    batch = boxed([[(8, 8, 24, 24)], [(0, 0, 8, 8)]])
    other = feats(3, SHAPE)
    other[0, :, 1:3, 1:3], other[1, :, 0, 0] = s[0, :, 1:3, 1:3], s[1, :, 0, 0]
    torch.testing.assert_close(loss(other, t, samples=batch), loss(s, t, samples=batch))
    assert loss(s, t, samples=boxed([[], []])) == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'4 \* \(reg_max \+ 1\) channels of a GFL head, found 18'):
        LDLoss(18)
    with pytest.raises(ValueError, match='found 4'):  # boxes themselves, as RetinaNet's
        LDLoss(4)
