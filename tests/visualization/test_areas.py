"""The drawings show the areas and the heat where they are on the picture."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from mmsokd.areas import Detection
from mmsokd.visualization import draw_areas
from mmsokd.visualization.areas import LEVEL_COLOURS, areas_figure, boxes_on, heat_on
from mmsokd.visualization.canvas import rasterize


def detection(student, teacher, boxes=((0.0, 0.0, 1.0, 1.0),), scores=None):
    """Of one picture."""
    boxes = torch.tensor([list(boxes)])
    scores = torch.ones(1, boxes.shape[1]) if scores is None else torch.tensor([scores])
    student, teacher = torch.as_tensor(student)[None, None], torch.as_tensor(teacher)[None, None]
    return Detection((student * teacher).sqrt(), boxes, scores, student, teacher)


def hot_at(rows, columns, row, column):
    heat = torch.full((rows, columns), 0.1)
    heat[row, column] = 0.9
    return heat


def pixel_of(figure, axis, x, y):
    """The drawn colour at a point of the picture, in [0, 1]."""
    image = rasterize(figure)
    column, row = axis.transData.transform((x, y))
    return image[image.shape[0] - 1 - round(row), round(column)] / 255


def test_boxes_lie_by_the_stride_and_are_cut_at_the_picture():
    boxes = torch.tensor([[1.0, 0.5, 2.0, 2.5], [3.0, 3.0, 9.0, 9.0], [8.0, 0.0, 9.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.0])
    found = boxes_on((50, 60), boxes, scores, 8)  # the third lies in the padding, the last is no area
    assert found == [[8.0, 4.0, 16.0, 20.0], [24.0, 24.0, 60, 50]]


def test_heat_is_where_its_cell_is_and_on_one_scale_for_both_networks():
    level = detection(hot_at(8, 8, 2, 5), hot_at(8, 8, 2, 5) / 2)
    student, teacher = heat_on((50, 60), [level], [8], 0)
    assert student.shape == teacher.shape == (50, 60)
    for heat in (student, teacher):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert 16 <= row < 24
        assert 40 <= column < 48
    assert student.max() == pytest.approx(1)
    peak = (15 / 16) ** 2  # between the middles of cells of 8 pixels the hottest pixel lies a sixteenth off
    assert teacher.max() == pytest.approx(0.4 * peak / (0.05 + 0.8 * peak), abs=1e-5)


def test_levels_count_alike_and_an_even_one_is_cold():
    fine, even = (
        detection(hot_at(8, 8, 0, 0), hot_at(8, 8, 0, 0)),
        detection(torch.full((4, 4), 0.5), torch.full((4, 4), 0.5)),
    )
    alone, _ = heat_on((64, 64), [fine], [8], 0)
    both, _ = heat_on((64, 64), [fine, even], [8, 16], 0)
    np.testing.assert_allclose(both, alone / 2, atol=1e-6)


def test_a_map_that_is_smaller_than_the_picture_is_continued():
    level = detection(hot_at(3, 3, 2, 2), hot_at(3, 3, 2, 2))
    heat, _ = heat_on((52, 50), [level], [16], 0)  # three cells of 16 are 48 pixels
    assert heat.shape == (52, 50)
    assert heat[51, 49] == heat[47, 47] > 0.9


@pytest.mark.parametrize('size', [(64, 64), (48, 96), (96, 40)])
def test_the_drawing_shows_box_and_heat(size):
    """A grey picture: what has a colour was drawn on it."""
    picture = np.full((*size, 3), 128, np.uint8)
    rows, columns = size[0] // 8, size[1] // 8
    levels = [
        detection(hot_at(rows, columns, 1, 3), hot_at(rows, columns, 4, 1), [(2.0, 1.0, 4.0, 3.0)]),
        detection(hot_at(rows // 2, columns // 2, 0, 0), hot_at(rows // 2, columns // 2, 0, 0), [(0.0, 1.0, 1.0, 2.0)]),
    ]
    figure = areas_figure(picture, levels, [8, 16], 0, 'loss_hint')
    boxed, ours, theirs = figure.axes[:3]
    assert [axis.get_title() for axis in (boxed, ours, theirs)] == [
        'detected areas',
        "student's heatmap",
        "teacher's heatmap",
    ]
    for colour, edge in zip(LEVEL_COLOURS, ((16, 12), (8, 32)), strict=False):  # a left one, and a lower one
        assert np.abs(pixel_of(figure, boxed, *edge) - to_rgb(colour)).max() < 0.25
    assert np.ptp(pixel_of(figure, boxed, 24, 16)) < 0.02  # inside of a box the picture is as it is
    hot, cold = pixel_of(figure, ours, 28, 12), pixel_of(figure, ours, 12, 36)
    assert hot.sum() > cold.sum() + 0.3
    hot, cold = pixel_of(figure, theirs, 12, 36), pixel_of(figure, theirs, 28, 12)
    assert hot.sum() > cold.sum() + 0.3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ['stride 8: 1 area', 'stride 16: 1 area']


def test_one_drawing_a_picture():
    two = detection(torch.rand(8, 8), torch.rand(8, 8))
    two = Detection(*(torch.cat([x, x]) for x in two))
    pictures = [np.zeros((64, 64, 3), np.uint8), np.zeros((40, 64, 3), np.uint8)]
    drawn = draw_areas(pictures, [two], [8])
    assert [image.dtype for image in drawn] == [np.uint8] * 2
    assert drawn[0].shape[0] > drawn[1].shape[0]
    assert all(image.shape[2] == 3 and image.shape[1] > 600 for image in drawn)
