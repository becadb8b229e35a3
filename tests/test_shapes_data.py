"""The demo's data generator: same seed same bytes, valid COCO, boxes and masks that are what they say."""

import contextlib
import importlib.util
import io
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / 'tools/data/make_shapes.py'


def load_script():
    spec = importlib.util.spec_from_file_location('make_shapes', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shapes = load_script()


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    shapes.make_shapes(root, train=40, val=12, size=96, seed=3)
    return root


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def load_coco(root, split):
    coco_api = pytest.importorskip('pycocotools.coco', reason='pycocotools judges the annotations')
    with contextlib.redirect_stdout(io.StringIO()):
        return coco_api.COCO(str(root / f'annotations/instances_{split}.json'))


def test_same_seed_same_bytes(dataset, tmp_path):
    shapes.make_shapes(tmp_path, train=40, val=12, size=96, seed=3)
    assert contents(tmp_path) == contents(dataset)


def test_picture_does_not_depend_on_how_many_there_are(dataset, tmp_path):
    shapes.make_shapes(tmp_path, train=5, val=2, size=96, seed=3)
    few, many = contents(tmp_path), contents(dataset)
    pictures = [name for name in few if name.endswith('.jpg')]
    assert len(pictures) == 7
    assert all(few[name] == many[name] for name in pictures)


def test_seed_and_split_change_every_picture(dataset, tmp_path):
    shapes.make_shapes(tmp_path, train=12, val=1, size=96, seed=4)
    old, new = contents(dataset), contents(tmp_path)
    for index in range(12):
        assert old[f'train/{index:06d}.jpg'] != new[f'train/{index:06d}.jpg']
        assert old[f'train/{index:06d}.jpg'] != old[f'val/{index:06d}.jpg']


@pytest.mark.parametrize(('split', 'pictures'), [('train', 40), ('val', 12)])
def test_valid_coco(dataset, split, pictures):
    coco = load_coco(dataset, split)
    assert len(coco.imgs) == pictures
    assert [cat['name'] for cat in coco.loadCats(coco.getCatIds())] == list(shapes.CLASSES)
    assert len(shapes.CLASSES) >= 5
    raw = json.loads((dataset / f'annotations/instances_{split}.json').read_text())['annotations']
    assert len({ann['id'] for ann in raw}) == len(raw) == len(coco.anns)
    assert 0 not in coco.anns  # an id of 0 counts as unmatched in COCO's evaluation
    assert {ann['category_id'] for ann in raw} == set(coco.cats)
    for image in coco.imgs.values():
        picture = cv2.imread(str(dataset / split / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3)
    for ann in raw:
        image, (x, y, w, h) = coco.imgs[ann['image_id']], ann['bbox']
        assert ann['iscrowd'] == 0
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert x + w <= image['width']
        assert y + h <= image['height']


def test_boxes_and_areas_are_tight_around_the_masks(dataset):
    coco = load_coco(dataset, 'train')
    assert len(coco.anns) > 100
    for ann in coco.anns.values():
        mask = coco.annToMask(ann)
        ys, xs = np.nonzero(mask)
        assert ann['area'] == len(xs)
        assert ann['bbox'] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]


def test_visible_masks_do_not_overlap_although_boxes_do(dataset):
    coco = load_coco(dataset, 'train')
    overlapping = 0
    for image_id in coco.imgs:
        anns = coco.loadAnns(coco.getAnnIds(image_id))
        assert sum(coco.annToMask(ann).astype(int) for ann in anns).max(initial=0) <= 1
        boxes = [ann['bbox'] for ann in anns]
        overlapping += sum(
            max(a[0], b[0]) < min(a[0] + a[2], b[0] + b[2]) and max(a[1], b[1]) < min(a[1] + a[3], b[1] + b[3])
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        )
    assert overlapping > 10


def closed_form_area(kind, r):
    """Areas of the unturned shapes with circumradius ``r``, from school geometry."""
    return {
        'disc': math.pi * r**2,
        'square': 2 * r**2,
        'triangle': 3 * math.sqrt(3) / 4 * r**2,
        'ring': math.pi * r**2 * (1 - 0.55**2),
        'cross': (2 * (2 * 0.95) * 0.6 - 0.6**2) * r**2,
    }[kind]


@pytest.mark.parametrize('kind', shapes.CLASSES)
def test_drawn_area_and_centre(kind):
    r, centre = 40.0, np.array([70.0, 55.0])
    cover = shapes.draw_shape(kind, r * np.eye(2), centre, 128)
    expected = closed_form_area(kind, r)
    np.testing.assert_allclose(cover.sum(), expected, rtol=0.02)
    np.testing.assert_allclose(shapes.whole_area(kind, r * np.eye(2)), expected, rtol=0.005)
    ys, xs = np.mgrid[:128, :128] + 0.5
    middle = [(cover * xs).sum() / cover.sum(), (cover * ys).sum() / cover.sum()]
    # every kind is centred on its centroid; corners are rounded to the drawing grid
    np.testing.assert_allclose(middle, centre, atol=0.6 / shapes.OVERSAMPLE)


def test_ring_has_a_hole_and_disc_has_none():
    centre = np.array([32.0, 32.0])
    assert shapes.draw_shape('ring', 20 * np.eye(2), centre, 64)[32, 32] == 0
    assert shapes.draw_shape('disc', 20 * np.eye(2), centre, 64)[32, 32] == 1


def test_half_out_of_the_frame_counts_as_half_visible():
    transform = 20 * np.eye(2)
    cover = shapes.draw_shape('disc', transform, np.array([0.0, 32.0]), 64)
    np.testing.assert_allclose(cover.sum() / shapes.whole_area('disc', transform), 0.5, rtol=0.02)


def test_little_visible_shapes_are_not_annotated(monkeypatch):
    """With the threshold lifted there are more annotations, and the extra ones are the small remainders."""
    kept, everything = 0, 0
    for seed in range(20):
        kept += len(shapes.make_picture(np.random.default_rng(seed), 96)[1])
    monkeypatch.setattr(shapes, 'MIN_VISIBLE', 0.0)
    for seed in range(20):
        everything += len(shapes.make_picture(np.random.default_rng(seed), 96)[1])
    assert 0 < kept < everything


@pytest.mark.parametrize('mask', [[[1, 0], [1, 1]], [[0, 1], [0, 1]], [[1, 1], [1, 1]]])
def test_run_lengths_decode_to_the_mask(mask):
    coded = shapes.run_lengths(np.array(mask, bool))
    flat = np.concatenate([np.full(n, i % 2) for i, n in enumerate(coded['counts'])])
    assert flat.reshape(2, 2).T.tolist() == mask


@pytest.mark.parametrize(('wrong', 'key'), [(dict(train=0), 'train'), (dict(val=0), 'val'), (dict(size=16), 'size')])
def test_bad_arguments_are_refused(tmp_path, wrong, key):
    with pytest.raises(ValueError, match=key):
        shapes.make_shapes(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
