"""TST's geometry in NumPy, point by point, with 3 x 3 matrices; imports nothing from mmsokd."""

import numpy as np


def whole(matrix, height, width):
    """The map of a 2 x 3 matrix about the centre as one 3 x 3 matrix of pixel coordinates, output to input."""
    to, back = np.eye(3), np.eye(3)
    to[:2, 2] = -width / 2, -height / 2
    back[:2, 2] = width / 2, height / 2
    middle = np.eye(3)
    middle[:2] = matrix
    return back @ middle @ to


def warp_labels(labels, matrix, height, width, fill=255):
    """The label under each output pixel's centre (H, W), ``fill`` outside of the picture's height and width."""
    out = np.full_like(labels, fill)
    m = whole(matrix, height, width)
    for row in range(height):
        for column in range(width):
            x, y, _ = m @ [column + 0.5, row + 0.5, 1]
            if 0 <= x < width and 0 <= y < height:
                out[row, column] = labels[int(y), int(x)]
    return out


def warp_box(box, matrix, height, width):
    """The hull of a box behind the inverse map, cut at the picture's edges; None where less than 1 is left."""
    inverse = np.linalg.inv(whole(matrix, height, width))
    left, top, right, bottom = box
    corners = [inverse @ [x, y, 1] for x in (left, right) for y in (top, bottom)]
    xs = [min(max(float(c[0]), 0.0), float(width)) for c in corners]
    ys = [min(max(float(c[1]), 0.0), float(height)) for c in corners]
    hull = [min(xs), min(ys), max(xs), max(ys)]
    return hull if hull[2] - hull[0] >= 1 and hull[3] - hull[1] >= 1 else None
