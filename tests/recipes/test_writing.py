"""Places and classes: what a written config refers to."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmsokd.recipes import writing
from mmsokd.recipes.sides import classes_of
from mmsokd.recipes.writing import HOOKS, check_place


def test_the_hooks_are_those_of_our_base():
    base = Config.fromfile(Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'sokd.py')
    assert base.custom_hooks == [dict(type=f'mmsokd.{name}') for name in HOOKS]
    assert base.custom_imports == dict(imports=['mmsokd'], allow_failed_imports=False)


@pytest.mark.parametrize(
    ('target', 'out', 'here', 'found'),
    [
        ('/home/a/s.py', '/home/a/out.py', False, './s.py'),
        ('/home/a/s.py', '/home/a/b/out.py', False, '../s.py'),
        ('/home/a/b/s.py', '/home/a/out.py', False, './b/s.py'),
        ('/home/a/t.pth', '/home/a/b/out.py', True, '{{ fileDirname }}/../t.pth'),
        ('/usr/lib/s.py', '/home/a/out.py', False, '/usr/lib/s.py'),  # nothing in common
        ('/usr/lib/t.pth', '/home/a/out.py', True, '/usr/lib/t.pth'),
    ],
)
def test_places(target, out, here, found):
    assert writing._place(target, Path(out), here) == found


def test_place_in_the_work_dir(tmp_path):
    """MMEngine writes the whole config there, under the same name."""
    with pytest.raises(FileExistsError, match='--out: expected a place outside of the work dir'):
        check_place(tmp_path / 'x.py', tmp_path, 'text', force=True)
    check_place(tmp_path / 'x.py', tmp_path / 'work', 'text', force=False)


@pytest.mark.parametrize(
    ('dataset', 'classes'),
    [
        (dict(type='CocoDataset', metainfo=dict(classes=('a', 'b'))), ['a', 'b']),
        (dict(type='RepeatDataset', times=2, dataset=dict(type='CocoDataset', metainfo=dict(classes=['a']))), ['a']),
        (dict(type='ConcatDataset', datasets=[dict(type='CocoDataset', metainfo=dict(classes=['b']))] * 2), ['b']),
        (dict(type='CocoDataset'), 80),
        (dict(type='VOCDataset'), 20),
        (dict(type='mmpretrain.CustomDataset', data_root='x'), None),
        (None, None),
    ],
)
def test_classes_of_a_training_set(dataset, classes):
    found = classes_of(Config(dict(default_scope='mmdet', train_dataloader=dataset and dict(dataset=dataset))))
    assert (len(found) if isinstance(classes, int) else found) == classes
