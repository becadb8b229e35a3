"""Make a small COCO-format detection data set: five kinds of shapes on textured backgrounds.

    python tools/data/make_shapes.py --out work_dirs/demo/data --train 800 --val 150

Hard on purpose, so that a small student does not saturate: shapes of 9 to 60 pixels, turned, squeezed and sheared, in a
colour drawn around the ground's, textured themselves, overlapping, half out of the picture; then blur, noise and JPEG.

A shape that comes later hides what lies under it. Boxes, areas and masks are those of the *visible* part; a shape of
which less than 30 % is visible (in the frame and not hidden) stays in the picture without an annotation. The same seed
gives the same bytes (for one version of OpenCV), and picture ``i`` does not depend on how many there are.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

CLASSES = ('disc', 'square', 'triangle', 'cross', 'ring')
MIN_VISIBLE = 0.3  # of the whole shape's area
MIN_AREA = 12  # pixels; below it nobody could tell the kind
OVERSAMPLE = 4  # masks are drawn on a grid this much finer


def polygon(corners: int) -> np.ndarray:
    """Corners (n, 2) of the regular polygon in the unit circle."""
    angle = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def outline(kind: str) -> list[np.ndarray]:
    """Contours of a shape in the unit circle; where two overlap there is a hole (even-odd rule)."""
    if kind == 'disc':
        return [polygon(48)]
    if kind == 'square':
        return [polygon(4)]
    if kind == 'triangle':
        return [polygon(3)]
    if kind == 'ring':
        return [polygon(48), 0.55 * polygon(48)]
    if kind == 'cross':
        w, e = 0.3, 0.95  # half width of an arm, its end: the corner stays in the unit circle
        corners = [(w, w), (w, e), (-w, e), (-w, w), (-e, w), (-e, -w), (-w, -w), (-w, -e), (w, -e), (w, -w), (e, -w)]
        return [np.array([*corners, (e, w)])]
    raise ValueError(f'kind: expected one of {list(CLASSES)}, found {kind!r}')


def draw_shape(kind: str, transform: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """Coverage of each pixel in [0, 1], (size, size), of the outline mapped by ``transform`` (2, 2) and moved."""
    fine = np.zeros((size * OVERSAMPLE, size * OVERSAMPLE), np.uint8)
    # cv2's integer coordinates are pixel centres, ours are continuous with pixel 0 spanning [0, 1]: hence the half
    contours = [((c @ transform.T + centre) * OVERSAMPLE - 0.5) for c in outline(kind)]
    cv2.fillPoly(fine, [np.round(c).astype(np.int32) for c in contours], 255)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def random_transform(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Rotation x shear x squeeze x scale, (2, 2); the diameter is uniform in ``low .. high`` pixels."""
    radius = 0.5 * rng.uniform(low, high)
    squeeze, shear, angle = rng.uniform(0.8, 1), rng.uniform(-0.1, 0.1), rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    return radius * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, squeeze]])


def texture(rng: np.random.Generator, size: int, amplitude: float) -> np.ndarray:
    """Coloured noise of zero mean, (size, size, 3): four octaves, and stripes in every second one drawn."""
    out = np.zeros((size, size, 3), np.float32)
    for cells in (3, 6, 16, 40):
        noise = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        noise = 0.7 * noise.mean(axis=2, keepdims=True) + 0.5 * noise  # mostly grey, some colour
        out += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        y, x = np.mgrid[:size, :size].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 20)
        wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period + rng.uniform(0, 6))
        out += 1.5 * wave[..., None].astype(np.float32)
    out -= out.mean(axis=(0, 1))
    return amplitude * out / (out.std() + 1e-6)


def make_picture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One picture (size, size, 3) uint8 and, for each annotated shape, its class and visible mask (size, size) bool."""
    image = rng.uniform(60, 190, 3).astype(np.float32) + texture(rng, size, rng.uniform(6, 16))
    grain = texture(rng, size, 1.0)  # every shape gets a shifted copy: a texture of its own would cost most of the time
    shapes = []  # class, whole area, visible mask
    for _ in range(rng.integers(3, 9)):
        label = int(rng.integers(len(CLASSES)))
        transform, centre = random_transform(rng, 9, 60), rng.uniform(0, size, 2)
        cover = draw_shape(CLASSES[label], transform, centre, size)
        mask = cover > 0.5
        if not mask.any():
            continue
        # its colour: the ground's there, moved by 45 .. 110 grey levels in a random direction of colour space
        shift = rng.standard_normal(3)
        colour = image[mask].mean(axis=0) + rng.uniform(45, 110) * np.sqrt(3) * shift / np.linalg.norm(shift)
        moved = np.roll(grain, tuple(rng.integers(size, size=2)), axis=(0, 1))
        paint = colour.astype(np.float32) + np.float32(rng.uniform(3, 10)) * moved
        image += cover[..., None] * (paint - image)
        shapes = [(other, whole, visible & ~mask) for other, whole, visible in shapes]
        shapes.append((label, whole_area(CLASSES[label], transform), mask))
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    image += rng.uniform(2, 7) * rng.standard_normal(image.shape).astype(np.float32)
    kept = [(label, m) for label, whole, m in shapes if m.sum() >= max(MIN_AREA, MIN_VISIBLE * whole)]
    return np.clip(image, 0, 255).astype(np.uint8), kept


def whole_area(kind: str, transform: np.ndarray) -> float:
    """Area in pixels of the whole shape, in the frame or not: the shoelace formula, holes subtracted."""
    areas = []
    for contour in outline(kind):
        x, y = contour.T
        areas.append(0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
    return (areas[0] - sum(areas[1:])) * abs(np.linalg.det(transform))


def tight_box(mask: np.ndarray) -> list[int]:
    """COCO box [x, y, width, height] of the True pixels."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1)]


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run-length code: column by column, the first run counts zeros."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return dict(size=list(mask.shape), counts=[0, *runs] if flat[0] else runs)


def make_split(out: Path, split: str, pictures: int, size: int, seed: int) -> None:
    """Write ``out/<split>/*.jpg`` and ``out/annotations/instances_<split>.json``."""
    (out / split).mkdir(parents=True, exist_ok=True)
    (out / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    console = Console(stderr=True)
    for index in track(range(pictures), split, console=console, disable=not console.is_terminal):
        # one generator per picture; the split's name is in the seed so that no picture is in both
        rng = np.random.default_rng([seed, *split.encode(), index])
        picture, shapes = make_picture(rng, size)
        name = f'{index:06d}.jpg'
        if not cv2.imwrite(str(out / split / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f'could not write {out / split / name}')
        images.append(dict(id=index + 1, file_name=name, width=size, height=size))
        for label, mask in shapes:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 1,
                    category_id=label + 1,
                    bbox=tight_box(mask),
                    area=int(mask.sum()),
                    segmentation=run_lengths(mask),
                    iscrowd=0,
                )
            )
    categories = [dict(id=i + 1, name=name, supercategory='shape') for i, name in enumerate(CLASSES)]
    coco = dict(info=dict(), licenses=[], images=images, annotations=annotations, categories=categories)
    (out / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))


def make_shapes(out: str | Path, train: int = 800, val: int = 150, size: int = 128, seed: int = 0) -> None:
    """Write the whole data set below ``out``: ``train/``, ``val/`` and ``annotations/instances_{train,val}.json``.

    Raises:
        ValueError: fewer than one picture in a split, or pictures smaller than 32 pixels.
    """
    if min(train, val) < 1:
        raise ValueError(f'train, val: expected at least one picture each, found {train} and {val}')
    if size < 32:
        raise ValueError(f'size: expected at least 32 pixels, found {size}')
    for split, pictures in (('train', train), ('val', val)):
        make_split(Path(out), split, pictures, size, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', required=True, help='folder to write to')
    parser.add_argument('--train', type=int, default=800, help='training pictures')
    parser.add_argument('--val', type=int, default=150, help='validation pictures')
    parser.add_argument('--size', type=int, default=128, help='side of a picture in pixels')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    make_shapes(**vars(args))
    print(f'{args.train} + {args.val} pictures of {args.size} x {args.size} in {args.out}')


if __name__ == '__main__':
    main()
