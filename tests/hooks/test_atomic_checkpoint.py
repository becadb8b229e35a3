"""At every moment of saving, last_checkpoint names a whole checkpoint; the order and the files, step by step."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner, find_latest_checkpoint

from mmsokd import checkpoint as reading
from mmsokd.checkpoint import load_checkpoint, write_atomically
from mmsokd.export import save_atomically
from mmsokd.hooks import GuardHook
from mmsokd.hooks.checkpoint import AtomicCheckpointHook, make_saves_atomic
from tests.builders_checkpoint import runner
from tests.builders_training import differences, saved
from tests.killing import Lives
from tests.test_launch import config, environment
from tests.test_own_train_scripts import make_classes

ROOT = Path(__file__).resolve().parents[2]


def atomic(work_dir, **kwargs):
    run = runner(work_dir, **kwargs)
    make_saves_atomic(run)
    return run


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.suffix in ('.pth', '.part'))


class Killed(BaseException):
    """What stands for SIGKILL: nothing after it runs."""


def test_write_is_whole_or_not_at_all(tmp_path):
    target = tmp_path / 'a'
    target.write_bytes(b'old')
    with write_atomically(target) as file:
        file.write(b'new')
        file.flush()
        assert target.read_bytes() == b'old'
    assert target.read_bytes() == b'new'
    assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_write_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        own = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, own=own: (calls.append(name), own(*args))[1])
    with write_atomically(tmp_path / 'a') as file:
        file.write(b'new')
    assert calls == ['fsync', 'replace', 'fsync']


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, number):
    target = tmp_path / 'student.pth'
    save_atomically(dict(state_dict={}, meta={}), target)
    old = target.read_bytes()

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(
        OSError, match=rf'student\.pth: not written, the file of this name is left.*{os.strerror(number)}'
    ):
        save_atomically(dict(state_dict={}), target)
    assert target.read_bytes() == old
    assert names(tmp_path) == ['student.pth']


def test_a_file_system_without_sync_of_folders(tmp_path, monkeypatch):
    """Some mounts answer EINVAL: the file is complete by then."""
    fsync = os.fsync

    def fail(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, 'fsync', fail)
    for content in (b'old', b'new'):
        with write_atomically(tmp_path / 'a') as file:
            file.write(content)
        assert (tmp_path / 'a').read_bytes() == content


@contextmanager
def largest_file(size):
    """Writing meets this limit as it meets a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_for_a_student(tmp_path):
    target = tmp_path / 'student.pth'
    save_atomically(dict(a=torch.zeros(100)), target)
    with largest_file(10_000), pytest.raises(OSError, match=r'student\.pth: not written, .*File too large'):
        save_atomically(dict(a=torch.ones(100_000)), target)
    assert names(tmp_path) == ['student.pth']
    assert load_checkpoint(target)['a'].sum() == 0


def test_full_disk_in_a_training(tmp_path):
    run = atomic(tmp_path, epochs=1)
    run.train()
    before = (tmp_path / 'epoch_1.pth').read_bytes()
    run = atomic(tmp_path, epochs=3, resume=True)
    with largest_file(len(before) // 2), pytest.raises(OSError, match=r'epoch_2\.pth: not written, .*File too large'):
        run.train()
    assert names(tmp_path) == ['epoch_1.pth']
    assert find_latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')
    assert (tmp_path / 'epoch_1.pth').read_bytes() == before
    run = atomic(tmp_path, epochs=3, resume=True)
    run.train()
    assert names(tmp_path) == ['epoch_3.pth']


@pytest.mark.slow
def test_full_disk_of_a_real_file_system(tmp_path):
    """tools/train.py on a tmpfs that has room for one checkpoint and a half; it is mounted for this run alone."""
    room = 11 * 2**20
    disk, left = tmp_path / 'disk', tmp_path / 'left'
    disk.mkdir()
    private = ['unshare', '--map-root-user', '--mount', 'sh', '-c']
    mount = f'mount -t tmpfs -o size={room} tmpfs {disk}'
    try:
        tried = subprocess.run([*private, mount], stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.skip('no unshare')
    if tried.returncode:
        pytest.skip(f'no mount of our own: {tried.stderr.strip()}')
    cfg = config(make_classes(tmp_path / 'pictures'), disk / 'work', 4)
    cfg.dump(tmp_path / 'sokd.py')
    train = f'{sys.executable} tools/train.py {tmp_path}/sokd.py'
    run = f'{mount} || exit; {train}; code=$?; cp -r {disk}/work {left}; exit $code'
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [*private, run], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 1, done.stdout[-3000:]
    *_, last = done.stdout.splitlines()
    file = disk / 'work' / 'epoch_2.pth'
    assert last == f'OSError: [Errno 28] {file}: not written, nothing is left of it: No space left on device'
    assert names(left) == ['epoch_1.pth']
    size = (left / 'epoch_1.pth').stat().st_size
    assert room / 2 < size < room
    assert find_latest_checkpoint(str(left)) == str(disk / 'work' / 'epoch_1.pth')
    assert load_checkpoint(left / 'epoch_1.pth')['meta']['epoch'] == 1


def states(monkeypatch):
    """Every file operation of saving, each followed by what a kill would leave: (what, files, last_checkpoint)."""
    seen = []

    def look(what):
        (folder,) = look.folder
        last = find_latest_checkpoint(str(folder))
        seen.append((what, names(folder), Path(last).name if last else last))
        if last:  # whole, and no older than the epoch before
            assert load_checkpoint(last)['meta']['epoch'] >= look.epoch - 1, seen[-1]

    for name in ('fsync', 'replace', 'remove', 'unlink'):
        own = getattr(os, name)

        def watched(*args, name=name, own=own, **kwargs):
            result = own(*args, **kwargs)
            if str(args[0]).endswith(('.pth', '.part')):
                look(name)
            return result

        monkeypatch.setattr(os, name, watched)
    return look, seen


def test_a_kill_at_any_step_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """max_keep_ckpts=1, as where MMEngine removes the only checkpoint first."""
    look, seen = states(monkeypatch)
    look.folder, look.epoch = [tmp_path], 0
    run = atomic(tmp_path, epochs=3)

    class Epochs(CheckpointHook):
        priority = 'HIGHEST'

        def after_train_epoch(self, runner):
            look.epoch = runner.epoch + 1

    run.register_hook(Epochs(interval=-1))
    run.train()
    assert ('replace', ['epoch_1.pth', 'epoch_2.pth'], 'epoch_1.pth') in seen
    assert ('remove', ['epoch_2.pth'], 'epoch_2.pth') in seen
    assert names(tmp_path) == ['epoch_3.pth']


def test_mmengine_alone_would_leave_none(tmp_path, monkeypatch):
    """What the hook is for: if this fails, MMEngine has learnt it."""
    run = runner(tmp_path, epochs=2)
    left = []
    own = os.remove
    monkeypatch.setattr(os, 'remove', lambda path: (own(path), left.append(names(tmp_path))))
    run.train()
    assert left == [[]]


@pytest.mark.parametrize('keep', [1, 2, 3, -1])
def test_files_are_those_that_mmengine_keeps(tmp_path, keep):
    found = []
    for make in (runner, atomic):
        work = tmp_path / make.__name__
        hook = dict(type='CheckpointHook', interval=1, max_keep_ckpts=keep, save_best='acc', rule='greater')
        scores = [0.1, 0.3, 0.2, 0.4]
        run = make(work, epochs=4, scores=scores, default_hooks=dict(checkpoint=hook))
        run.train()
        last = torch.load(find_latest_checkpoint(str(work)), weights_only=False)
        info = last['message_hub']['runtime_info']
        found.append([names(work), Path(info['best_ckpt']).name, Path(info['last_ckpt']).name, info['best_score']])
    assert found[0] == found[1]
    assert 'best_acc_epoch_4.pth' in found[0][0]


def test_best_is_written_before_the_former_goes(tmp_path, monkeypatch):
    look, seen = states(monkeypatch)
    look.folder, look.epoch = [tmp_path], 0
    hook = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='acc', rule='greater')
    atomic(tmp_path, epochs=2, scores=[0.1, 0.2], default_hooks=dict(checkpoint=hook)).train()
    best = [[name for name in files if name.startswith('best') and name.endswith('.pth')] for _, files, _ in seen]
    first = best.index(['best_acc_epoch_1.pth'])
    assert all(best[first:])
    assert ['best_acc_epoch_1.pth', 'best_acc_epoch_2.pth'] in best
    assert best[-1] == ['best_acc_epoch_2.pth']


def test_only_this_runs_best_checkpoints_are_removed(tmp_path):
    """A resumed run knows them by what the checkpoint says, which may be anybody's."""
    hook = dict(type='CheckpointHook', interval=1, save_best='acc', rule='greater')
    for victim in (tmp_path / 'best_of_somebody', tmp_path / 'work' / 'other'):
        (victim / 'file').mkdir(parents=True)
        run = atomic(tmp_path / 'work', epochs=1, scores=[0.1], default_hooks=dict(checkpoint=hook))
        run.message_hub.update_info('best_ckpt', str(victim))
        run.message_hub.update_info('best_score', 0.0)
        run.train()
        assert victim.is_dir()
        assert (tmp_path / 'work' / 'best_acc_epoch_1.pth').is_file()


def test_only_numbers_name_outdated_checkpoints(tmp_path):
    victim = tmp_path / 'victim.pth'
    (tmp_path / 'work' / 'epoch_').mkdir(parents=True)
    victim.touch()
    run = atomic(tmp_path / 'work', epochs=2)
    run.message_hub.update_info('keep_ckpt_ids', ['/../../victim'])
    run.train()
    assert victim.is_file()
    assert names(tmp_path / 'work') == ['epoch_2.pth']


def test_what_a_kill_left_is_removed_on_resume(tmp_path, monkeypatch):
    """Killed after writing the second checkpoint, before removing the first."""
    run = atomic(tmp_path, epochs=4)

    def kill(*_):
        raise Killed

    monkeypatch.setattr(AtomicCheckpointHook, '_remove', kill)
    with pytest.raises(Killed):
        run.train()
    monkeypatch.undo()
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    for name in ('student_best_acc_epoch_2.pth.part', 'last_checkpoint.part'):
        (tmp_path / name).write_bytes(b'torn')  # nobody writes this name again
    atomic(tmp_path, epochs=4, resume=True).train()
    assert names(tmp_path) == ['epoch_4.pth']
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize(
    ('template', 'torn'), [('epoch_{}', 'best_acc_epoch_7'), ('{:03d}.pth', '007.pth'), ('[a]{}', '[a]7')]
)
def test_strangers_files_are_left_alone(tmp_path, template, torn):
    """Also where checkpoints have no suffix."""
    for name in ('data.zip.part', f'{torn}.part'):
        (tmp_path / name).write_bytes(b'torn')
    checkpoint = dict(type='CheckpointHook', filename_tmpl=template)
    atomic(tmp_path, default_hooks=dict(checkpoint=checkpoint)).train()
    assert [path.name for path in tmp_path.glob('*.part')] == ['data.zip.part']


def test_a_folder_of_its_own_need_not_be_there(tmp_path):
    checkpoint = dict(type='CheckpointHook', out_dir=str(tmp_path / 'elsewhere'))
    atomic(tmp_path / 'work', default_hooks=dict(checkpoint=checkpoint)).train()
    assert list((tmp_path / 'elsewhere').glob('*/epoch_2.pth'))


def test_own_subclass_and_other_backends_are_left_alone(tmp_path):
    class Own(CheckpointHook):
        """A library's."""

    run = runner(tmp_path, default_hooks=dict(checkpoint=Own(interval=1)))
    make_saves_atomic(run)
    assert [type(hook) for hook in run.hooks if isinstance(hook, CheckpointHook)] == [Own]
    run = atomic(
        tmp_path, default_hooks=dict(checkpoint=dict(type='CheckpointHook', backend_args=dict(backend='local')))
    )
    run.train()
    (hook,) = (hook for hook in run.hooks if isinstance(hook, AtomicCheckpointHook))
    assert hook.backend_args == dict(backend='local')


def test_an_unknown_argument_is_told_before_the_training(tmp_path):
    """MMEngine keeps it for its first checkpoint, and fails there."""
    run = atomic(tmp_path, default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epochs=True)))
    with pytest.raises(ValueError, match=r"^CheckpointHook\.by_epochs: expected one of .*nearest: \['by_epoch'\]"):
        run.train()
    assert run.iter == 0


def test_registered_and_by_guard(tmp_path, monkeypatch):
    """As a type of a config, and by the hook that mmsokd's configs bring, under any train.py."""
    run = runner(tmp_path / 'a', default_hooks=dict(checkpoint=dict(type='mmsokd.AtomicCheckpointHook', interval=1)))
    run.train()
    assert names(tmp_path / 'a') == ['epoch_1.pth', 'epoch_2.pth']
    monkeypatch.setattr(reading.CheckpointLoader, '_schemes', reading.CheckpointLoader._schemes.copy())
    run = runner(tmp_path / 'b')
    GuardHook().before_run(run)
    assert [type(hook) for hook in run.hooks if isinstance(hook, CheckpointHook)] == [AtomicCheckpointHook]
    assert isinstance(run, Runner)


class Guard(Hook):
    """What GuardHook does for a model that is no distiller."""

    priority = 'VERY_HIGH'
    trust_checkpoint = False
    before_run = GuardHook.before_run


def test_guard_comes_before_resuming_and_saving(tmp_path, monkeypatch):
    """In the Runner's own order, without our tools."""
    monkeypatch.setattr(reading.CheckpointLoader, '_schemes', reading.CheckpointLoader._schemes.copy())
    run = runner(tmp_path)
    run.register_hook(Guard())
    run.train()
    assert names(tmp_path) == ['epoch_2.pth']
    saved = load_checkpoint(tmp_path / 'epoch_2.pth')
    saved['meta']['more'] = Path  # the name of a class is enough
    torch.save(saved, tmp_path / 'epoch_2.pth')
    run = runner(tmp_path, epochs=3, resume=True)
    run.register_hook(Guard())
    with pytest.raises(ValueError, match=r'epoch_2\.pth.*pathlib'):
        run.train()


def test_what_resuming_would_refuse_is_told_with_the_first_checkpoint(tmp_path, monkeypatch):
    run = atomic(tmp_path)
    told = []
    monkeypatch.setattr(run.logger, 'warning', told.append)
    run.train()
    assert not told
    run = atomic(tmp_path / 'odd')
    run.message_hub.update_info('odd', Path)
    monkeypatch.setattr(run.logger, 'warning', told.append)
    run.train()
    (message,) = told
    assert 'epoch_1.pth' in message
    assert 'pathlib' in message


KILLS = int(os.environ.get('MMSOKD_KILLS', 30))


def long_run(work_dir, resume):
    """Of large checkpoints, so that it mostly saves, and of more epochs than it is killed in."""
    return atomic(work_dir, epochs=4 * KILLS, resume=resume, model=dict(type='CheckpointToy', width=100_000))


@pytest.mark.slow
@pytest.mark.parametrize('kills', [KILLS])
def test_killed_at_random_moments(tmp_path, kills):
    """SIGKILL while it trains or saves: it resumes from a whole checkpoint, the last one that was named.

    A third of them wait for a file that is being written. It ends as the one that nobody killed, bit by bit.
    """
    lives = Lives(long_run, tmp_path / 'work', interval=2)
    torn = [lives.kill(aimed=i % 3 == 0) for i in range(kills)]
    reached = lives.saved // 2
    assert reached > 0
    assert sum(torn) >= kills // 5  # more than half were seen
    lives.finish()
    Lives(long_run, tmp_path / 'whole', interval=2).finish()
    work, whole = saved(tmp_path / 'work'), saved(tmp_path / 'whole')
    assert whole['clock']['epoch'] == 4 * kills
    assert not differences(whole, work)
    print(f'{kills} kills, {sum(torn)} of them while a file was written; {reached} epochs reached; the same end')
