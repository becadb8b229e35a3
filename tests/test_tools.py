"""The tools as a user runs them: each in a process of its own, on a tiny data set."""

import json
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.builders import retinanet
from tests.hooks.test_training import config, make_pictures

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
MMDET_TOOLS = Path(find_spec('mmdet').origin).parent / '.mim' / 'tools'

pytestmark = pytest.mark.slow


def run(script, *args):
    """Run a tool from the repository; its output, both streams."""
    command = [sys.executable, '-W', 'ignore', str(script), *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def succeed(script, *args):
    code, out = run(script, *args)
    assert code == 0, out[-3000:]
    return out


def average_precision(out):
    """The AP that MMEngine logs at the end of a test, as it is written there."""
    return re.findall(r'coco/bbox_mAP: ([\d.-]+)', out)[-1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Config files of a distiller, of its student, and of another student."""
    folder = tmp_path_factory.mktemp('tools')
    data = make_pictures(folder / 'pictures')
    # A head that scores everything, so that a student of a few steps finds something to be compared.
    student = retinanet(16)
    student['test_cfg'] = dict(student['test_cfg'], score_thr=0.0)
    distiller = dict(
        type='mmsokd.SoKDDistiller',
        student=student,
        teacher=retinanet(24),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck')),
        probe_size=128,
    )
    models = dict(distiller=distiller, student=student, other=retinanet(24))
    for name, model in models.items():
        cfg = config(data, folder / 'work', model=model, epochs=1, log_level='INFO')
        if name == 'distiller':
            cfg.custom_hooks = Config.fromfile(ROOT / 'configs' / '_base_' / 'sokd.py').custom_hooks
        cfg.dump(folder / f'{name}.py')
    return folder


@pytest.fixture(scope='module')
def checkpoint(folder):
    succeed(TOOLS / 'train.py', folder / 'distiller.py', '--cfg-options', 'optim_wrapper.optimizer.lr=0.01')
    return folder / 'work' / 'epoch_1.pth'


@pytest.fixture(scope='module')
def exported(folder, checkpoint):
    succeed(TOOLS / 'export_student.py', checkpoint, folder / 'student.pth', '--config', folder / 'student.py')
    return folder / 'student.pth'


def test_train_logs_its_terms_and_takes_options(folder, checkpoint):
    (log,) = (folder / 'work').glob('*/vis_data/scalars.json')
    first = json.loads(log.read_text().splitlines()[0])
    assert first['distill.loss_hint'] > 0
    assert first['lr'] == 0.01
    assert not [key for key in torch.load(checkpoint, weights_only=False)['state_dict'] if 'teacher' in key]


def test_exported_student_scores_as_in_training(folder, checkpoint, exported):
    """Validated at the end of training; the distiller's config with its checkpoint; the plain one with the exported."""
    (log,) = (folder / 'work').glob('*/vis_data/scalars.json')
    trained = json.loads(log.read_text().splitlines()[-1])['coco/bbox_mAP']
    assert trained > 0  # else all are alike
    predictions = folder / 'predictions.pkl'
    work = ('--work-dir', folder / 'test')
    distilled = succeed(TOOLS / 'test.py', folder / 'distiller.py', checkpoint, *work, '--out', predictions)
    plain = succeed(TOOLS / 'test.py', folder / 'student.py', exported, *work)
    by_mmdet = succeed(MMDET_TOOLS / 'test.py', folder / 'student.py', exported, *work)
    assert float(average_precision(distilled)) == pytest.approx(trained, abs=1e-4)
    assert average_precision(distilled) == average_precision(plain) == average_precision(by_mmdet)
    with predictions.open('rb') as file:
        assert len(pickle.load(file)) == 8


def test_tta_with_a_distiller(folder, checkpoint):
    out = succeed(TOOLS / 'test.py', folder / 'distiller.py', checkpoint, '--work-dir', folder / 'test', '--tta')
    assert 0 <= float(average_precision(out)) <= 1


def test_exported_student_in_the_wrong_config(folder, exported):
    code, out = run(TOOLS / 'test.py', folder / 'other.py', exported, '--work-dir', folder / 'test')
    assert code != 0
    assert re.search(
        r'checkpoint: expected weights of RetinaNet, found that \d+ of \d+ keys of .*student\.pth.* fit', out
    )
    assert 'coco/bbox_mAP' not in out


def test_no_such_checkpoint(folder):
    code, out = run(TOOLS / 'test.py', folder / 'student.py', folder / 'none.pth', '--work-dir', folder / 'test')
    assert code != 0
    assert 'expected a checkpoint file or URL, found no file' in out


def test_resume_goes_on(folder, checkpoint):
    out = succeed(
        TOOLS / 'train.py',
        folder / 'distiller.py',
        '--resume',
        checkpoint,
        '--work-dir',
        folder / 'resumed',
        '--cfg-options',
        'train_cfg.max_epochs=2',
    )
    assert 'Epoch(train) [2]' in out
    assert 'Epoch(train) [1]' not in out


def test_mmdets_own_train_script_runs_our_config(folder):
    """One `custom_imports` line is all it needs."""
    out = succeed(MMDET_TOOLS / 'train.py', folder / 'distiller.py', '--work-dir', folder / 'mmdet')
    assert 'distill.loss_hint' in out


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_launchers_old_and_new_spelling(folder, spelling):
    code, out = run(TOOLS / 'train.py', folder / 'missing.py', f'{spelling}=0')
    assert code != 0
    assert 'unrecognized arguments' not in out


def test_amp_refuses_another_wrapper(folder):
    code, out = run(TOOLS / 'train.py', folder / 'student.py', '--amp', '--cfg-options', 'optim_wrapper.type=Other')
    assert code != 0
    assert out.strip().splitlines()[-1].startswith("--amp: expected optim_wrapper.type 'OptimWrapper', found 'Other'")
