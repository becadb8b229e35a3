"""Ground-truth boxes on a map: which cells they touch, and what FGD makes of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import BaseDataElement, InstanceData

from mmsokd.losses.boxes import boxes_in_cells, cells_of
from mmsokd.losses.fgd import focal_masks
from mmsokd.losses.ld import inside_boxes
from tests.losses.common import boxed
from tests.reference import dense as reference

corners = st.tuples(*[st.integers(-20, 140) for _ in range(4)])  # pixels; some lie outside, some have no extent


@st.composite
def pictures(draw):
    """Boxes of two pictures in pixels of a 104 x 120 batch."""
    return [
        [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in draw(st.lists(corners, min_size=0, max_size=4))]
        for _ in range(2)
    ]


@given(pictures())
def test_masks_against_a_loop_over_the_cells(boxes):
    found = boxes_in_cells(boxed(boxes, (104, 120)), torch.zeros(2, 1, 13, 15, dtype=torch.float64))  # 8 pixels
    foreground, background = focal_masks(found, (13, 15))
    inside = inside_boxes(found, (13, 15))
    for i, picture in enumerate(boxes):
        in_cells = [[v / 8 for v in box] for box in picture]
        expected = [torch.from_numpy(m) for m in reference.fgd_masks(in_cells, 13, 15)]
        torch.testing.assert_close(foreground[i, 0], expected[0])
        torch.testing.assert_close(background[i, 0], expected[1])
        assert torch.equal(inside[i, 0] > 0, expected[0] > 0)


def test_by_hand():
    boxes = torch.tensor([[[0.5, 1.0, 3.0, 2.5], [2.0, 2.0, 2.0, 2.0]]])
    foreground, background = focal_masks(boxes, (4, 5))
    a = 1 / 6  # columns 0 to 2, rows 1 and 2; the small box has the cell (2, 2) for itself
    expected = torch.tensor([[0, 0, 0, 0, 0], [a, a, a, 0, 0], [a, a, 1, 0, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(foreground[0, 0], expected)
    torch.testing.assert_close(background[0, 0], (expected == 0) / 14)


def test_every_box_that_lies_alone_weighs_one_whatever_its_size():
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 9.0, 8.0]]])
    foreground, background = focal_masks(boxes, (10, 12))
    torch.testing.assert_close(foreground[0, 0, 0, 0].item(), 1.0)
    torch.testing.assert_close(foreground.sum().item(), 2.0)
    torch.testing.assert_close(background.sum().item(), 1.0)


def test_no_boxes_are_all_background():
    found = boxes_in_cells(boxed([[], []]), torch.zeros(2, 1, 5, 6))
    foreground, background = focal_masks(found, (5, 6))
    assert not foreground.any()
    torch.testing.assert_close(background, torch.full((2, 1, 5, 6), 1 / 30))


def test_one_box_over_all_leaves_no_background():
    foreground, background = focal_masks(torch.tensor([[[-3.0, -3.0, 99.0, 99.0]]]), (5, 6))
    torch.testing.assert_close(foreground, torch.full((1, 1, 5, 6), 1 / 30))
    assert not background.any()


def test_horizontal_boxes_and_pad_shape():
    plain = boxed([[(4, 8, 24, 40)], []])
    expected = torch.tensor([[[0.5, 1, 3, 5]], [[torch.nan] * 4]])
    for batch in (plain, boxed([[(4, 8, 24, 40)], []], wrap=HorizontalBoxes)):
        found = boxes_in_cells(batch, torch.zeros(2, 7, 5, 6))
        torch.testing.assert_close(found[:, :1], expected, equal_nan=True)
        assert found[:, 1:].isnan().all()
    for sample in plain:
        del sample.batch_input_shape
    torch.testing.assert_close(boxes_in_cells(plain, torch.zeros(2, 7, 5, 6)), found, equal_nan=True)
    plain[0].set_metainfo(dict(pad_shape=(80, 48)))  # each picture by its own
    torch.testing.assert_close(boxes_in_cells(plain, torch.zeros(2, 7, 5, 6))[0, 0], torch.tensor([0.5, 0.5, 3, 2.5]))


def test_a_box_that_ends_with_a_cell_ends_there_exactly():
    # 7 cells over 1001 pixels: a scale that no float holds
    batch = boxed([[(143 * i, 143 * i, 143 * (i + 1), 143 * (i + 1)) for i in range(7)]], (1001, 1001))
    rows, columns = cells_of(boxes_in_cells(batch, torch.zeros(1, 1, 7, 7)), (7, 7))
    assert torch.equal(rows[0, :7], torch.eye(7, dtype=torch.bool))
    assert torch.equal(columns[0, :7], torch.eye(7, dtype=torch.bool))


def test_samples_without_boxes_are_refused():
    feat = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r'expected .*gt_instances\.bboxes \(n, 4\), found none; this loss'):
        boxes_in_cells(None, feat)
    with pytest.raises(ValueError, match=r'found \[\]; this loss'):
        boxes_in_cells([BaseDataElement()], feat)
    with pytest.raises(ValueError, match=r'found \(3, 5\)'):  # rotated ones
        boxes_in_cells([BaseDataElement(gt_instances=InstanceData(bboxes=torch.zeros(3, 5)))], feat)
    with pytest.raises(ValueError, match="metainfo: expected 'batch_input_shape' or 'pad_shape'"):
        boxes_in_cells([BaseDataElement(gt_instances=InstanceData(bboxes=torch.zeros(3, 4)))], feat)
