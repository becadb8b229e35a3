"""Two processes on CPUs, started by the shell scripts as a user starts them, against one process."""

import contextlib
import copy
import importlib.util
import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import tests.ranks  # noqa: F401 (registers)
from tests.builders import classifier
from tests.test_own_train_scripts import make_classes

ROOT = Path(__file__).resolve().parents[1]


GROUPS = dict(type='GN', num_groups=4)


def network(base):
    """With GroupNorm, so that a picture's loss does not depend on which others are in its process."""
    backbone = dict(type='ResNet', depth=18, base_channels=base, stem_channels=base, out_indices=(3,))
    model = classifier(base, classes=3)
    return dict(model, backbone=dict(backbone, norm_cfg=GROUPS))


def config(data, work_dir, batch_size, kind='SoKDDistiller', hooks=()):
    """Four epochs of three steps, each of ``batch_size`` pictures a process."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_root=str(data), pipeline=pipeline)
    train = dict(
        batch_size=batch_size, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset
    )
    train['collate_fn'] = dict(type='default_collate')  # tools/train.py does it, a bare Runner does not
    val = dict(train, sampler=dict(type='DefaultSampler', shuffle=False))
    model = dict(
        type=f'mmsokd.{kind}',
        student=network(8),
        teacher=network(16),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone')),
        probe_size=64,
    )
    cfg = dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmsokd', 'tests.ranks'], allow_failed_imports=False),
        model=model,
        train_dataloader=train,
        val_dataloader=val,
        test_dataloader=val,
        val_evaluator=dict(type='Accuracy'),
        test_evaluator=dict(type='Accuracy'),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=4),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9)),
        custom_hooks=[dict(type='RecordHook'), *hooks],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        randomness=dict(seed=1),
        work_dir=str(work_dir),
    )
    return Config(copy.deepcopy(cfg))


def additive(cfg):
    """SoKD whose loss of a batch is the mean of its halves': no batch statistics, no means over the areas of all."""
    hint = dict(cfg.model.terms.loss_hint, adapter=dict(type='mmsokd.SoKDAdapter', norm_cfg=GROUPS))
    cfg.model.terms = dict(  # in the order in which a dumped config has them, and their adapters their random weights
        loss_deep=dict(hint, tap='backbone.layer3', areas=False),
        loss_hint=dict(hint, tap='backbone.layer2'),
    )
    cfg.model.keep_host = False  # inside the areas FitNet is a mean over the batch's masked cells
    cfg.model.areas = dict(type='mmsokd.DistinctiveAreaDetector', normalization='all')
    cfg.model.refine = dict(type='mmsokd.FeatureAugmentationNeck', shared_draws=True)
    cfg.custom_hooks.append(dict(type='AffineHook'))
    return cfg


SEARCH = dict(type='mmsokd.PolicySearchHook', search_iters=8, lr=0.1, weight_decay=0.0)


def free_port():
    """Below the ports that systems give to whoever asks for any, as srun does between this and the port's use."""
    while True:
        port = random.SystemRandom().randrange(10000, 20000)  # tests draw alike in both of pytest's workers
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(('127.0.0.1', port))
            return str(port)


def environment(**kwargs):
    """One thread a process, and this Python first."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return dict(
        os.environ, PATH=path, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES='-1', **kwargs
    )


def succeed(*command, **kwargs):
    """What it said, both streams."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **kwargs
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def dist(tool, *args):
    return succeed(ROOT / 'tools' / f'dist_{tool}.sh', *args, cwd=ROOT, env=environment(PORT=free_port()))


def records(work_dir, ranks=2):
    assert len(list(work_dir.glob('rank_*.pth'))) == ranks
    return [torch.load(work_dir / f'rank_{rank}.pth', weights_only=False) for rank in range(ranks)]


def assert_the_same(a, b):
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_classes(tmp_path_factory.mktemp('launch') / 'pictures')


@pytest.fixture(scope='module')
def plain(data, tmp_path_factory):
    """The folder of a host's run with two processes."""
    folder = tmp_path_factory.mktemp('plain')
    config(data, folder / 'work', 2, 'Distiller').dump(folder / 'plain.py')
    dist('train', folder / 'plain.py', 2)
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one(data, plain, tmp_path):
    """The ranks' mean losses, the student's and the host's, and the weights, against one process with all pictures.

    They differ by the order of float32 sums alone, some 1e-7 in a step, which twelve steps may amplify.
    """
    cfg = config(data, tmp_path, 4, 'Distiller')
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    Runner.from_cfg(cfg).train()
    (one,) = records(tmp_path, ranks=1)
    a, b = records(plain / 'work')
    assert a['wrapper'] == b['wrapper'] == 'MMDistributedDataParallel'
    assert_the_same(a['weights'], b['weights'])
    mean = torch.tensor([a['losses'], b['losses']]).mean(0)
    whole = torch.tensor(one['losses'])
    assert whole.shape == (12, 3)  # the sum, the student's and the host's
    assert (torch.tensor(a['losses']) - whole).abs().max() > 0.01  # each rank's own pictures
    print(f'losses: {(mean / whole - 1).abs().max():.1e}', end=' ')
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=0)
    far = max((a['weights'][name] - value).abs().max().item() for name, value in one['weights'].items())
    print(f'weights: {far:.1e}')
    assert far < 1e-5


@pytest.mark.slow
def test_two_processes_test_as_they_validated(plain):
    (log,) = (plain / 'work').glob('*/vis_data/scalars.json')
    trained = json.loads(log.read_text().splitlines()[-1])['accuracy/top1']
    out = dist('test', plain / 'plain.py', plain / 'work' / 'epoch_4.pth', 2, '--work-dir', plain / 'test')
    assert float(re.findall(r'accuracy/top1: ([\d.]+)', out)[-1]) == pytest.approx(trained, abs=1e-3)


def batch_norm(cfg):
    """BatchNorm in student, teacher and adapters, in place of GroupNorm."""
    for owner in (
        cfg.model.student.backbone,
        cfg.model.teacher.backbone,
        *(t.adapter for t in cfg.model.terms.values()),
    ):
        owner.norm_cfg = dict(type='BN')
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('sync_bn', [False, True])
def test_two_processes_search_as_one(data, tmp_path, sync_bn):
    """SoKD with one draw for all: each step's mean losses, the weights and the policy, against one process.

    With GroupNorm, or with BatchNorm made SyncBN by the config's ``sync_bn`` (here its definition: PyTorch's own needs
    GPUs). They differ by the order of float32 sums alone, some 1e-7 in a step, which batch statistics amplify.
    """
    one, two = (additive(config(data, tmp_path / str(n), n, hooks=[SEARCH])) for n in (4, 2))
    one.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    if sync_bn:
        one, two = batch_norm(one), batch_norm(two)
        two.sync_bn = 'torch'
        two.custom_imports.imports.append('tests.cpu_sync_bn')
    two.dump(tmp_path / 'two.py')
    dist('train', tmp_path / 'two.py', 2)
    Runner.from_cfg(one).train()
    (whole,) = records(tmp_path / '4', ranks=1)
    a, b = records(tmp_path / '2')
    assert_the_same(a['weights'], b['weights'])
    assert_the_same(a['policy'], b['policy'])
    assert (whole['policy']['magnitude'] - 0.5).abs().max() > 0.1
    mean = torch.tensor([a['losses'], b['losses']]).mean(0)
    losses = (mean / torch.tensor(whole['losses']) - 1).abs().max().item()
    weights, policy = (
        max((a[k][n] - v).abs().max().item() for n, v in whole[k].items()) for k in ('weights', 'policy')
    )
    print(f'losses {losses:.1e}, weights {weights:.1e}, policy {policy:.1e}')
    assert max(losses, weights, policy) < (1e-3 if sync_bn else 1e-5)


@pytest.mark.slow
def test_ranks_end_a_search_with_one_policy(data, tmp_path):
    config(data, tmp_path / 'work', 2, hooks=[SEARCH]).dump(tmp_path / 'sokd.py')
    dist('train', tmp_path / 'sokd.py', 2)
    a, b = records(tmp_path / 'work')
    assert len(a['losses']) == len(b['losses']) == 12
    assert a['losses'] != b['losses']
    assert_the_same(a['weights'], b['weights'])
    assert_the_same(a['policy'], b['policy'])
    assert (a['policy']['magnitude'] - 0.5).abs().max() > 0.1
    assert sorted(p.name for p in (tmp_path / 'work').glob('epoch_*')) == [f'epoch_{i}.pth' for i in range(1, 5)]


@pytest.fixture
def cli():
    spec = importlib.util.spec_from_file_location('_cli', ROOT / 'tools' / '_cli.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LAUNCHED = {
    'pytorch': dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', MASTER_ADDR='n5'),
    'slurm': dict(SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_LOCALID='1', SLURM_NODELIST='n[7-8]'),
    'mpi': dict(OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_LOCAL_RANK='1', MASTER_ADDR='n5'),
}


@pytest.mark.parametrize('launcher', LAUNCHED)
def test_every_launchers_variables(cli, monkeypatch, launcher):
    for names in cli.RANK_VARIABLES.values():
        for name in (*names, 'MASTER_ADDR', 'MASTER_PORT'):
            monkeypatch.delenv(name, raising=False)
    found = {}
    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    monkeypatch.setattr(cli.os, 'environ', {**os.environ, **LAUNCHED[launcher]})
    monkeypatch.setattr(cli.subprocess, 'run', lambda *_, **__: subprocess.CompletedProcess([], 0, 'n7\nn8\n'))
    monkeypatch.setattr(
        cli.torch.distributed,
        'init_process_group',
        lambda backend, **limit: found.update({n: cli.os.environ.get(n) for n in names}, backend=backend, **limit),
    )
    cfg = Config(dict(launcher=launcher, env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60))))
    cli.join_on_cpu(cfg)
    assert (found['RANK'], found['WORLD_SIZE'], found['LOCAL_RANK']) == ('3', '4', '1')
    assert (found['MASTER_ADDR'], found['MASTER_PORT']) == ('n7' if launcher == 'slurm' else 'n5', '29500')
    assert (found['backend'], found['timeout'].total_seconds()) == ('gloo', 60)
    assert cfg.model_wrapper_cfg.device_ids is None
    assert not cfg.model_wrapper_cfg.find_unused_parameters


def test_a_launcher_without_its_processes(cli, monkeypatch):
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    with pytest.raises(SystemExit, match='--launcher slurm: expected the environment variable SLURM_PROCID'):
        cli.join_on_cpu(Config(dict(launcher='slurm')))


@pytest.mark.parametrize(('launcher', 'name'), [('slurm', 'SLURM_NODELIST'), ('mpi', 'MASTER_ADDR')])
def test_a_launcher_that_tells_no_address(cli, monkeypatch, launcher, name):
    environ = {**os.environ, **LAUNCHED[launcher]}
    for key in ('MASTER_ADDR', 'SLURM_NODELIST'):
        environ.pop(key, None)
    monkeypatch.setattr(cli.os, 'environ', environ)
    with pytest.raises(SystemExit, match=f'--launcher {launcher}: expected the environment variable {name}'):
        cli.join_on_cpu(Config(dict(launcher=launcher)))
