"""SFTN as it is run: two processes, the libraries' own train.py, resuming, and the teacher that comes of it."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from tests.builders import classifier, raw_batch, raw_cls_batch, raw_seg_batch, retinanet, segmentor
from tests.distillers.test_sftn import DET, FC, SEG, STAGES, small, trainer
from tests.hooks.test_training import config, make_pictures, train
from tests.test_own_train_scripts import classification, run, segmentation
from tests.test_tools import TOOLS, succeed
from tests.two_ranks import assert_same, on_two_ranks

HOOKS = [dict(type='mmsokd.GuardHook'), dict(type='mmsokd.StudentCheckpointHook')]


def detector(**kwargs):
    cfg = dict(type='mmsokd.SFTNTeacherTrainer', teacher=retinanet(24), student=retinanet(16), stages=STAGES, kl=DET)
    return dict(cfg, probe_size=128, **kwargs)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('data') / 'pictures')


def test_a_run_that_was_cut_resumes_exactly(data, tmp_path):
    whole = train(config(data, tmp_path / 'whole', model=detector(), hooks=HOOKS, epochs=2))
    train(config(data, tmp_path / 'cut', model=detector(), hooks=HOOKS, epochs=1))
    resumed = train(config(data, tmp_path / 'cut', model=detector(), hooks=HOOKS, epochs=2, resume=True))
    assert resumed.iter == whole.iter == 4
    ours, theirs = (runner.model.state_dict() for runner in (resumed, whole))
    assert {name.split('.')[0] for name in ours} == {'teacher', 'branches', 'transforms'}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # beside every checkpoint that testing looks for there is the teacher alone
    assert {path.name for path in (tmp_path / 'whole').glob('teacher_*.pth')} == {'teacher_epoch_2.pth'}


def worker(rank, folder):
    models = [
        (lambda: small(), lambda i: raw_cls_batch(4, 32, seed=i)),
        (lambda: small(share_head=True, detach_teacher=True), lambda i: raw_cls_batch(4, 32, seed=i)),
        (lambda: trainer(segmentor(12), segmentor(8), SEG, STAGES, 64), lambda i: raw_seg_batch()),
        (lambda: trainer(retinanet(24), retinanet(16), DET, STAGES, 128), lambda i: raw_batch(seed=i)),
    ]
    for build, make in models:
        model = build()
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        optim_wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        for i in range(3):
            wrapped.train_step(make(10 * rank + i), optim_wrapper)
        mine = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert not torch.equal(mine, start)
        assert_same(mine)


@pytest.mark.slow
def test_ranks_stay_together(tmp_path):
    on_two_ranks(worker, tmp_path)


LIBRARIES = {
    'mmpretrain': (classification, lambda base: classifier(base, classes=3), FC, 'accuracy/top1'),
    'mmseg': (segmentation, lambda base: segmentor(base), SEG, 'mIoU'),
    'mmdet': (
        lambda folder: config(make_pictures(folder / 'data'), folder / 'unused', epochs=2, log_level='INFO'),
        lambda base: retinanet(base, test_cfg=dict(retinanet()['test_cfg'], score_thr=0.0)),
        DET,
        'coco/bbox_mAP',
    ),
}


def configs_of(library, folder):
    """The same data and schedule for SFTN, for the teacher alone, and the metric's name."""
    make, network, kl, metric = LIBRARIES[library]
    cfg = make(folder)
    plain = Config({**cfg.to_dict(), 'model': network(16)})
    cfg.model = dict(type='mmsokd.SFTNTeacherTrainer', teacher=network(16), student=network(8), stages=STAGES, kl=kl)
    cfg.model.probe_size = 128 if library == 'mmdet' else 64
    cfg.custom_hooks = HOOKS
    return cfg, plain, metric


@pytest.mark.parametrize('library', LIBRARIES)
def test_the_teacher_alone_scores_as_in_training(library, tmp_path):
    cfg, plain, metric = configs_of(library, tmp_path)
    cfg.work_dir = str(tmp_path / 'work')
    trained = train(cfg).message_hub.get_scalar(f'val/{metric}').current()
    last = Path((tmp_path / 'work' / 'last_checkpoint').read_text())
    plain.update(work_dir=str(tmp_path / 'test'), load_from=str(last.with_name(f'teacher_{last.name}')))
    assert Runner.from_cfg(plain).test()[metric] == trained


@pytest.mark.slow
def test_the_librarys_own_train_script(tmp_path):
    cfg, plain, metric = configs_of('mmdet', tmp_path)
    cfg.dump(tmp_path / 'sftn.py')
    plain.dump(tmp_path / 'teacher.py')
    work = tmp_path / 'work'
    out = run('mmdet', 'train', tmp_path / 'sftn.py', '--work-dir', work)
    assert re.search(r'sftn\.loss_branch3: \d', out)
    assert re.search(r'sftn\.loss_kl1: \d', out)
    last = (work / 'last_checkpoint').read_text()
    teacher = work / f'teacher_{Path(last).name}'
    tested = run('mmdet', 'test', tmp_path / 'teacher.py', teacher, '--work-dir', tmp_path / 'test')
    score = rf'{metric}: ([\d.-]+)'
    assert re.findall(score, tested)[-1] == re.findall(score, out)[-1]

    export = TOOLS / 'export_student.py'
    succeed(export, last, tmp_path / 'teacher.pth', '--part', 'teacher', '--config', tmp_path / 'teacher.py')
    ours, theirs = (torch.load(path, weights_only=False)['state_dict'] for path in (tmp_path / 'teacher.pth', teacher))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    succeed(export, last, tmp_path / 'branch.pth', '--part', 'branches.0')
    branch = torch.load(tmp_path / 'branch.pth', weights_only=False)['state_dict']
    assert 'backbone.layer2.0.conv1.weight' in branch
    assert not [name for name in branch if name.startswith(('backbone.conv1', 'backbone.layer1'))]
