"""tools/analysis on a real run that was resumed, the tools' bars, and what a wrong folder is told."""

import json
import os
import pty
import runpy
import subprocess
import sys
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, init_default_scope
from torch import nn

from mmsokd.visualization.complexity import cost_of, costs_of, picture_size
from mmsokd.visualization.runs import read_run
from tests.builders import classifier, distiller, retinanet, segmentor
from tests.builders_runs import config as made_up
from tests.builders_runs import train_row, val_row, write_run
from tests.hooks.test_training import config, make_pictures, train
from tests.visualization.test_report import SECTIONS, Page

ROOT = Path(__file__).resolve().parents[1]
ANALYSIS = ROOT / 'tools' / 'analysis'


@HOOKS.register_module(force=True)
class KillAfterAnEpoch(Hook):
    """A run that ends in its second epoch."""

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A student alone, and SoKD of two epochs that was resumed after the first, each in its work dir."""
    folder = tmp_path_factory.mktemp('analysis')
    data = make_pictures(folder / 'pictures')
    hooks = [
        dict(type='mmsokd.GuardHook'),
        dict(type='mmsokd.PolicySearchHook', search_iters=3, lr=0.05),
        dict(type='mmsokd.DAMHook', num_images=1),
    ]

    def run(name, **kwargs):
        names = dict(log_level='INFO', experiment_name=uuid.uuid4().hex)
        train(config(data, folder / name, **names, **kwargs))

    run('student', model=retinanet(16), epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run('sokd', hooks=[*hooks, dict(type='KillAfterAnEpoch')], epochs=2)
    run('sokd', hooks=hooks, epochs=2, resume=True)
    return folder


def use(name, monkeypatch, *args):
    """Run a tool as a script, in this process."""
    monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
    monkeypatch.syspath_prepend(str(ANALYSIS))
    runpy.run_path(str(ANALYSIS / f'{name}.py'), run_name='__main__')


def test_a_resumed_run_is_read_as_one(folder):
    run = read_run(folder / 'sokd')
    rows = [
        json.loads(line)
        for path in sorted((folder / 'sokd').glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    assert [row['iter'] for row in run.train] == [1, 2, 3, 4]
    assert run.train == [row for row in rows if 'iter' in row]
    assert (run.starts, run.is_finished, run.planned) == (2, True, (2, 'epoch'))
    assert [line['iter'] for line in run.policy] == [0, 1, 2, 3]
    assert run.environment['seed'] == '1'
    assert list(run.drawings) == [2, 4]
    assert len(run.val) == 2


def test_report(folder, monkeypatch, capsys):
    use('report', monkeypatch, folder / 'sokd', '--compare', folder / 'student', '--out', folder / 'deep' / 'page.html')
    assert 'page.html' in capsys.readouterr().out
    page = Page((folder / 'deep' / 'page.html').read_text())
    assert list(page.sections) == SECTIONS
    run = read_run(folder / 'sokd')
    metrics = page.rows('metrics')
    assert [row[:2] for row in metrics[1:3]] == [['student alone', 'student'], ['distilled', 'sokd']]
    assert metrics[2][3] == f'{run.val[-1]["coco/bbox_mAP"]:.4g}'
    costs = {row[0]: row[1] for row in page.rows('cost')}
    model = distiller()
    assert costs['student'] == f'{sum(p.numel() for p in model.student.parameters()) / 1e6:.3f}'
    assert costs['area heads'] == f'{sum(p.numel() for p in model.areas.parameters()) / 1e6:.3f}'
    assert 'Started 2 times' in (folder / 'deep' / 'page.html').read_text()
    assert len([figure for figure in page.figures if figure[0] == 'areas' and 'image/png' in figure[2]]) == 1


def test_report_of_a_model_that_cannot_be_built_here(tmp_path, monkeypatch):
    write_run(tmp_path, '20260101_000000', [train_row(10, 1, 2.0)], made_up(model=dict(type='NobodysNet')))
    use('report', monkeypatch, tmp_path)
    page = Page((tmp_path / 'report.html').read_text())
    assert 'cannot be built here' in page.sections['cost']
    assert 'NobodysNet' in page.sections['cost']


def test_compare(folder, monkeypatch, capsys):
    use('compare', monkeypatch, folder / 'student', folder / 'sokd', '--metric', 'coco/bbox_mAP_50')
    out = capsys.readouterr().out.splitlines()
    value = read_run(folder / 'sokd').val[-1]['coco/bbox_mAP_50']
    assert out[3].startswith(f'| sokd | SoKD on FitNet | epoch 2 | {value:.4g} |')
    assert cv2.imread(str(folder / 'student' / 'compare.png')).std() > 5


def test_policy(folder, monkeypatch, capsys):
    use('policy', monkeypatch, folder / 'sokd', '--out', folder / 'policy.png')
    assert 'to iteration 3' in capsys.readouterr().out
    assert cv2.imread(str(folder / 'policy.png')).std() > 5
    with pytest.raises(SystemExit, match=r'expected lines in vis_data/policy\.json, found none'):
        use('policy', monkeypatch, folder / 'student')


def test_features(folder, monkeypatch, capsys):
    use('features', monkeypatch, folder / 'sokd', '--pictures', 2)
    assert '2 figures of 2 pictures' in capsys.readouterr().out
    for i in (0, 1):
        assert cv2.imread(str(folder / 'sokd' / 'features' / f'loss_hint_{i}.png')).std() > 20
    with pytest.raises(SystemExit, match='expected a distiller, whose features can be compared, found RetinaNet'):
        use('features', monkeypatch, folder / 'student')
    with pytest.raises(SystemExit, match='--pictures: expected at least 1, found 0'):
        use('features', monkeypatch, folder / 'sokd', '--pictures', 0)


@pytest.mark.parametrize('tool', ['report', 'compare', 'policy', 'features'])
def test_no_work_dir_is_one_message(tool, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match='work dir: expected'):
        use(tool, monkeypatch, tmp_path)


@pytest.mark.slow
def test_the_demo_ends_with_its_page(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import demo

    for name in ('student', 'teacher', 'student+SoKD'):
        rows = [train_row(10, 1, 2.0), val_row(1, **{'coco/bbox_mAP': 0.5})]
        write_run(tmp_path / name, '20260101_000000', rows, made_up(model=dict(type='NobodysNet')))
    page = Page(demo.write_report(tmp_path).read_text())
    assert [row[1] for row in page.rows('metrics')[1:]] == ['student', 'teacher', 'student+SoKD']


def test_costs_by_hand():
    """A convolution's multiply-adds, and a classifier's."""
    size = (32, 48)
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', in_channels=8, num_classes=5, loss=dict(type='CrossEntropyLoss'))
    backbone = dict(type='mmsokd.CIFARResNet', depth=8, widths=(4, 4, 4, 8))
    model = dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    (cost,) = costs_of(Config(dict(model=model, default_scope='mmpretrain')), size).values()
    assert cost.problem == ''
    twice = costs_of(Config(dict(model=model, default_scope='mmpretrain')), (64, 48))['model']
    assert twice.parameters == cost.parameters
    fixed = 8 * 5  # the classifier's, whatever the picture
    assert twice.flops - fixed == pytest.approx(2 * (cost.flops - fixed), rel=0.01)


class Refuses(nn.Module):
    """A model that cannot be run."""

    def forward(self, *_, **__):
        raise RuntimeError('not today\nand more')


def test_what_cannot_be_counted_is_told():
    assert cost_of(Refuses(), (8, 8)) == (0, None, 'RuntimeError: not today')


@pytest.mark.parametrize('build', [retinanet, segmentor, classifier])
def test_all_three_libraries_are_counted(build):
    model = build()
    cfg = Config(
        dict(
            model=model,
            default_scope=dict(retinanet='mmdet', segmentor='mmseg', classifier='mmpretrain')[build.__name__],
        )
    )
    (cost,) = costs_of(cfg, (64, 64)).values()
    assert cost.flops > cost.parameters > 1000


@pytest.mark.parametrize(
    ('pipeline', 'more', 'size'),
    [
        ([dict(type='Resize', scale=(1333, 800))], dict(pad_size_divisor=32), (800, 1344)),
        ([dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=224)], {}, (224, 224)),
        (
            [dict(type='RandomResize', scale=(2048, 1024)), dict(type='RandomCrop', crop_size=(512, 1024))],
            {},
            (512, 1024),
        ),
        ([dict(type='PackInputs')], {}, (224, 224)),
    ],
)
def test_the_size_of_the_pictures(pipeline, more, size):
    loader = dict(dataset=dict(pipeline=pipeline))
    assert picture_size(dict(test_dataloader=loader, data_preprocessor=more)) == size
    assert picture_size(dict(train_dataloader=loader, model=dict(student=dict(data_preprocessor=more)))) == size


def in_a_terminal(command):
    """The output of a command whose streams are a terminal."""
    main, other = pty.openpty()
    process = subprocess.Popen(command, stdout=other, stderr=other, stdin=other, env={**os.environ, 'TERM': 'xterm'})
    os.close(other)
    out = b''
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        out += part
    os.close(main)
    assert process.wait(300) == 0
    return out.decode()


def test_a_bar_in_a_terminal_and_none_in_a_pipe(tmp_path):
    command = [
        sys.executable,
        str(ROOT / 'tools/data/make_shapes.py'),
        '--train',
        '3',
        '--val',
        '2',
        '--size',
        '32',
        '--out',
    ]
    shown = in_a_terminal([*command, str(tmp_path / 'a')])
    assert '100%' in shown
    assert 'train' in shown
    done = subprocess.run([*command, str(tmp_path / 'b')], capture_output=True, text=True, check=True)
    assert done.stderr == ''
    assert done.stdout.splitlines() == [f'3 + 2 pictures of 32 x 32 in {tmp_path / "b"}']


@pytest.mark.slow
def test_the_bar_of_fitting_priors(tmp_path):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f'{i}.png'), np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8))
    command = [sys.executable, str(ROOT / 'tools/fit_tst_priors.py'), str(tmp_path), str(tmp_path / 'priors.pth')]
    command += ['--size', '8', '--warp-epochs', '1', '--color-epochs', '1']
    shown = in_a_terminal(command)
    assert '100%' in shown
    assert 'epoch 1 of 1' in shown
