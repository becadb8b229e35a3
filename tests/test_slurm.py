"""tools/slurm_*.sh and the documentation's batch script on a real Slurm of one node, started here."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.test_launch import (
    SEARCH,
    assert_the_same,
    config,
    environment,
    free_port,
    make_classes,
    records,
    succeed,
)

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / 'tools' / 'slurm' / 'local_cluster.sh'
SBIN = f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'
MISSING = [name for name in ('slurmctld', 'slurmd', 'munged', 'srun') if not shutil.which(name, path=SBIN)]
DAEMONS = ('slurmctld', 'slurmd', 'munged')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f'no {", ".join(MISSING)}: apt-get install slurm-wlm munge'),
]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(done, seconds=300):
    end = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.5)
    return result


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """The environment in which srun and sbatch find it."""
    state = tmp_path_factory.mktemp('slurm')
    env = environment(CPUS='2', GPUS='2', GPUS_PER_NODE='0', CPUS_PER_TASK='1', MASTER_PORT=free_port())
    done = subprocess.run([CLUSTER, 'start', state], env=env, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0
    pids = [int((state / f'{name}.pid').read_text()) for name in DAEMONS]
    yield dict(env, SLURM_CONF=re.fullmatch(r'export SLURM_CONF=(.*)\n', done.stdout)[1])
    succeed(CLUSTER, 'stop', state, env=env)
    assert not [pid for pid in pids if is_running(pid)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_classes(tmp_path_factory.mktemp('data') / 'pictures')


@pytest.fixture(scope='module')
def undisturbed(cluster, data, tmp_path_factory):
    """The folder of a run by tools/slurm_train.sh from its start to its end."""
    folder = tmp_path_factory.mktemp('undisturbed')
    config(data, folder / 'unused', 2, hooks=[SEARCH]).dump(folder / 'sokd.py')
    train = ROOT / 'tools' / 'slurm_train.sh'
    succeed(train, 'local', 'tiny', folder / 'sokd.py', folder / 'work', cwd=ROOT, env=cluster)
    return folder


def test_two_tasks_by_srun(cluster, undisturbed):
    a, b = records(undisturbed / 'work')
    assert a['wrapper'] == b['wrapper'] == 'MMDistributedDataParallel'
    assert len(a['losses']) == len(b['losses']) == 12
    assert a['losses'] != b['losses']  # each its own pictures
    assert_the_same(a['weights'], b['weights'])
    assert_the_same(a['policy'], b['policy'])
    names = sorted(path.name for path in (undisturbed / 'work').glob('epoch_*'))
    assert names == [f'epoch_{i}.pth' for i in range(1, 5)]  # written by one of them
    (log,) = (undisturbed / 'work').glob('*/vis_data/scalars.json')
    trained = json.loads(log.read_text().splitlines()[-1])['accuracy/top1']
    test = ROOT / 'tools' / 'slurm_test.sh'
    checkpoint = undisturbed / 'work' / 'epoch_4.pth'
    out = succeed(test, 'local', 'tiny', undisturbed / 'sokd.py', checkpoint, cwd=ROOT, env=cluster)
    assert float(re.findall(r'accuracy/top1: ([\d.]+)', out)[-1]) == pytest.approx(trained, abs=1e-3)


def test_a_requeued_job_ends_where_an_undisturbed_one_does(cluster, data, undisturbed, tmp_path):
    """Interrupted in the third epoch, with the search still going on."""
    config(data, tmp_path / 'unused', 2, hooks=[SEARCH, dict(type='PauseHook', at=6)]).dump(tmp_path / 'sokd.py')
    page = (ROOT / 'docs' / 'distributed.md').read_text()
    script = next(b for b in re.findall(r'```bash\n(.*?)```', page, re.S) if '#SBATCH' in b)
    (tmp_path / 'train.sbatch').write_text(script)
    work = tmp_path / 'work'
    env = dict(cluster, PARTITION='local', JOB_NAME='tiny', CONFIG=str(tmp_path / 'sokd.py'), WORK_DIR=str(work))
    output = tmp_path / 'job.log'
    flags = ('--parsable', '--partition=local', '--ntasks=2', '--cpus-per-task=1', f'--output={output}')
    job = succeed('sbatch', *flags, tmp_path / 'train.sbatch', cwd=ROOT, env=env).strip()

    def state():
        return re.search(r'JobState=(\w+)', succeed('scontrol', 'show', 'job', job, env=env))[1]

    wait_until(lambda: len(list(work.glob('paused_*'))) == 2 or state() == 'FAILED')
    assert (work / 'last_checkpoint').read_text().endswith('epoch_2.pth'), output.read_text()
    succeed('scancel', '--batch', '--signal=USR1', job, env=env)
    wait_until(lambda: state() in ('COMPLETED', 'FAILED'))
    said = output.read_text()
    assert state() == 'COMPLETED', said[-3000:]
    a, b = records(work)
    assert a['restarts'] == b['restarts'] == 1
    assert len(a['losses']) == len(b['losses']) == 6  # the third and the fourth epoch
    assert 'resumed epoch: 2, iter: 6' in said
    final = [torch.load(f / 'work' / 'epoch_4.pth', weights_only=False) for f in (tmp_path, undisturbed)]
    assert_the_same(*(checkpoint['state_dict'] for checkpoint in final))
