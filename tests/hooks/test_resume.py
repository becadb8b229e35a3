"""N steps straight, and N steps that are cut and resumed, are the same bit by bit."""

import copy
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset, get_worker_info

from mmsokd.augment import Policy
from mmsokd.hooks import SeedHook
from mmsokd.hooks import seed as seed_module
from mmsokd.hooks.seed import NumberedBatches
from mmsokd.registry import MODELS
from tests.builders_checkpoint import runner as toy
from tests.builders_training import Pictures, differences, refined, runner, saved
from tests.killing import Lives
from tests.test_launch import SEARCH, environment
from tests.test_launch import config as launched
from tests.test_own_train_scripts import make_classes

ROOT = Path(__file__).resolve().parents[2]
CUT = 7  # of 12 iterations, with a checkpoint after every third
ITERS = dict(by_epoch=False, max_iters=9)
LAZY = hasattr(_InfiniteDataloaderIterator, 'skip_iter')  # onedl-mmengine's workers begin after the checkpoint is read


class Kill(Hook):
    def before_train_iter(self, runner, **_):
        if runner.iter == CUT:
            raise KeyboardInterrupt


def generators():
    return [torch.get_rng_state(), np.random.get_state(), random.getstate()]


def straight_and_cut(tmp_path, monkeypatch, resumed=None, **kwargs):
    """Both runs' last checkpoints, with the draws that led there and the states of all generators.

    ``resumed``: settings that are others when the cut run goes on.
    """
    draws = []
    sample = Policy.sample

    def watched(policy, *args, **options):
        draw = sample(policy, *args, **options)
        if options.get('advance', True):  # an unrolled pass looks ahead
            draws.append(f'{draw} {draw.seed}')
        return draw

    monkeypatch.setattr(Policy, 'sample', watched)
    runner(tmp_path / 'whole', **copy.deepcopy(kwargs)).train()
    whole = saved(tmp_path / 'whole') | dict(generators=generators(), draws=list(draws))
    draws.clear()
    first = runner(tmp_path / 'cut', **copy.deepcopy(kwargs))
    first.register_hook(Kill())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert saved(tmp_path / 'cut')['clock']['iter'] == 6
    del draws[len(draws) * 6 // CUT :]  # what comes after the checkpoint is drawn again
    runner(tmp_path / 'cut', resume=True, **copy.deepcopy(kwargs | (resumed or {}))).train()
    cut = saved(tmp_path / 'cut') | dict(generators=generators(), draws=list(draws))
    assert whole['clock']['iter'] == 12
    return whole, cut


@pytest.mark.parametrize(
    ('loop', 'workers', 'search'),  # of 12 iterations the cut leaves 6
    [('epochs', 0, 12), ('epochs', 2, 4), ('iterations', 0, 4), ('iterations', 2, 12)],
)
def test_a_cut_run_is_the_whole_one(tmp_path, monkeypatch, loop, workers, search):
    """Dropout, mixup, a chance pipeline, masks, a memory bank, areas, and terms that change and end."""
    whole, cut = straight_and_cut(tmp_path, monkeypatch, loop=loop, workers=workers, search=search)
    assert not differences(whole, cut)
    assert len(whole['draws']) == 12
    assert whole['policy_search']['shared']['state'][0]['step'] == search
    kd, _ = whole['log']['train/distill.loss_kd']
    assert kd[0] > 0 == kd[-1]


@pytest.mark.parametrize(
    'settings',
    [
        dict(hooks=[dict(type='EMAHook', momentum=0.1, begin_iter=2)]),
        dict(model=refined(estimator='relax', per_term=True)),
        dict(model=refined(at='backbone.layer2', per_sample=True)),
        dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=3)),
        dict(randomness=dict(seed=5, diff_rank_seed=True)),
        dict(train_dataloader=DataLoader(Pictures(), 4, shuffle=True, collate_fn=default_collate)),
    ],
    ids=['ema', 'relax', 'at', 'accumulation', 'seeds of ranks', "PyTorch's loader"],
)
def test_a_cut_run_of_another_kind(tmp_path, monkeypatch, settings):
    whole, cut = straight_and_cut(tmp_path, monkeypatch, search=9, **settings)
    assert not differences(whole, cut)


@pytest.mark.parametrize(
    ('loop', 'workers'), [('epochs', 2), ('iterations', 0), *([('iterations', 2)] if LAZY else [])]
)
def test_a_seed_of_mmengines_choice(tmp_path, monkeypatch, loop, workers):
    """Without one in the config it is the checkpoint's that counts; the teacher's weights come from a file."""
    model = refined()
    teacher = MODELS.build(copy.deepcopy(model['teacher']))
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    model['teacher']['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'teacher.pth'))
    other = dict(randomness=dict(seed=None))
    whole, cut = straight_and_cut(tmp_path, monkeypatch, other, model=model, loop=loop, workers=workers, search=9)
    assert not differences(whole, cut)


def test_flexible_runner_on_one_device(tmp_path, monkeypatch):
    """It trains as the Runner does; it resumes before the hooks begin, so that the policy's optimizer begins anew."""
    flexible = dict(kind=FlexibleRunner, strategy=dict(type='SingleDeviceStrategy'))
    runner(tmp_path / 'plain', epochs=3, search=9).train()
    runner(tmp_path / 'flexible', epochs=3, search=9, **flexible).train()
    plain, other = (saved(tmp_path / name) for name in ('plain', 'flexible'))
    assert not differences(plain, other)
    assert plain['policy_search']['shared']['state'][0]['step'] == 9
    again = runner(tmp_path / 'flexible', epochs=4, search=12, resume=True, **flexible)
    told = []
    monkeypatch.setattr(again.logger, 'warning', told.append)
    again.train()
    assert not [text for text in told if 'ends where it began' in text]  # which nobody knows any more
    resumed = saved(tmp_path / 'flexible')
    assert resumed['clock']['iter'] == 12
    assert resumed['policy_search']['shared']['state'][0]['step'] == 3  # if this fails, it resumes: tell it in the docs


def test_unrolled_search(tmp_path, monkeypatch):
    search = dict(type='mmsokd.PolicySearchHook', mode='unrolled', search_iters=8, lr=0.05)
    hooks = [dict(type='mmsokd.SeedHook'), search]
    whole, cut = straight_and_cut(tmp_path, monkeypatch, custom_hooks=hooks)
    assert not differences(whole, cut)


def test_mmengine_alone_draws_anew(tmp_path, monkeypatch):
    """What the hook is for: if this fails, MMEngine has learnt it."""
    hooks = [dict(type='mmsokd.PolicySearchHook', search_iters=9)]
    whole, cut = straight_and_cut(tmp_path, monkeypatch, custom_hooks=hooks)
    assert whole['clock'] == cut['clock']
    assert differences(whole['state_dict'], cut['state_dict'])


def test_validation_changes_nothing(tmp_path):
    """It draws from PyTorch's generator, and a run that is cut after it was saved may leave it out."""
    for validates in (True, False):
        runner(tmp_path / str(validates), validates=validates).train()
    assert not differences(saved(tmp_path / 'True'), saved(tmp_path / 'False'))


# ---- the hook alone -------------------------------------------------------------------------------------------------


class Chances(Pictures):
    """What each generator gives, as a picture of three numbers."""

    def __getitem__(self, i):
        return dict(inputs=torch.tensor([random.random(), np.random.uniform(), float(torch.rand(()))]))


class Alone(Chances):
    """Each picture is a batch."""

    def __getitem__(self, i):
        return {key: value.expand(2, 3) for key, value in super().__getitem__(i).items()}


class Keep(Hook):
    """All that was loaded, and what a step would draw."""

    def __init__(self):
        self.loaded, self.drawn = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.loaded += [value for picture in data_batch['inputs'] for value in picture.tolist()]
        self.drawn += [random.random(), np.random.uniform(), float(torch.rand(()))]


def kept(tmp_path, loop='epochs', hooks=(), **loader):
    """Three passes over 12 pictures, two at a time."""
    train_cfg = dict(by_epoch=True, max_epochs=3) if loop == 'epochs' else dict(by_epoch=False, max_iters=18)
    loader = dict(loader, dataset=Chances(), batch_size=2, sampler=dict(type='DefaultSampler'))
    keep = Keep()
    run = toy(tmp_path, train_dataloader=loader, train_cfg=train_cfg)
    run.register_hook(SeedHook())
    for hook in (keep, *hooks):
        run.register_hook(hook)
    run.train()
    assert len(keep.loaded) == 3 * 12 * 3
    assert len(keep.drawn) == 3 * 6 * 3
    return keep


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
@pytest.mark.parametrize('persistent', [True, False])
def test_no_chance_comes_twice(tmp_path, persistent, loop):
    """MMEngine seeds workers that do not live on alike in every pass."""
    keep = kept(tmp_path, loop, num_workers=2, persistent_workers=persistent)
    assert Counter(keep.loaded + keep.drawn).most_common(1)[0][1] == 1


def test_chances_do_not_depend_on_the_number_of_workers(tmp_path):
    alone, three = (kept(tmp_path / str(count), num_workers=count) for count in (0, 3))
    assert alone.loaded == three.loaded
    assert alone.drawn == three.drawn


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('shuffle', [None, True])
def test_iterations_over_a_finite_set(tmp_path, monkeypatch, workers, shuffle):
    """By MMEngine's sampler or PyTorch's, whose order of a pass is drawn as it begins; the cut is amid the third."""
    loader = dict(num_workers=workers, collate_fn=default_collate, dataset=Pictures())
    if shuffle:
        loader = DataLoader(batch_size=4, shuffle=True, **loader)
    else:
        loader.update(batch_size=4, sampler=dict(type='DefaultSampler'), collate_fn=dict(type='default_collate'))
    whole, cut = straight_and_cut(tmp_path, monkeypatch, loop='iterations', search=9, train_dataloader=loader)
    assert not differences(whole, cut)


class Peek(Hook):
    """As PreciseBN, looks at some of the training's pictures after an epoch, and leaves the loader amid its pass."""

    def after_train_epoch(self, runner):
        for _ in zip(range(2), runner.train_dataloader, strict=False):
            time.sleep(0.2)


def test_who_looks_at_the_training_set_changes_nothing(tmp_path):
    """Another's pass over the loader."""
    alone = kept(tmp_path / 'alone', num_workers=2, persistent_workers=True)
    looked_at = kept(tmp_path / 'peek', hooks=[Peek()], num_workers=2, persistent_workers=True)
    assert looked_at.loaded == alone.loaded


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('loop', [dict(by_epoch=True, max_epochs=2), dict(by_epoch=False, max_iters=12)])
def test_a_second_training_draws_what_it_would_as_the_first(tmp_path, workers, loop):
    """Its workers live on from the first, and know the first one's batches."""
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(
        Seen(), 2, shuffle=True, generator=generator, num_workers=workers, persistent_workers=workers > 0
    )
    loaded = []
    for name in 'ab':
        if loop['by_epoch'] is False and workers and not LAZY:  # begun by MMEngine, who draws on from what was before
            generator.manual_seed(3)
        run, keep = toy(tmp_path / name, train_dataloader=loader, train_cfg=loop), Keep()
        run.register_hook(SeedHook())
        run.register_hook(keep)
        run.train()
        assert not isinstance(loader.batch_sampler, NumberedBatches)
        loaded.append(keep.loaded)
    half = len(loaded[0]) // 2
    assert loaded[0][half:] == loaded[1][half:]
    if workers == 0 or loop['by_epoch'] or LAZY:
        assert loaded[0] == loaded[1]
    assert loaded[0][:half] != loaded[0][half:]


class ByGroups(BatchSampler):
    """Draws with each batch, as mmdet's GroupMultiSourceSampler does."""

    def __init__(self, size):
        self.sampler, self.batch_size, self.size = SequentialSampler(range(size)), 4, size

    def __iter__(self):
        for _ in range(self.size // 4):
            yield np.random.choice(self.size, 4, replace=False).tolist()

    def __len__(self):
        return self.size // 4


class Seen(Chances):
    """Says which it is, too."""

    def __getitem__(self, i):
        return dict(inputs=torch.tensor([i, random.random(), np.random.uniform()]))


class Stream(IterableDataset):
    """Pictures in a row; draws as it begins, and with each."""

    def __len__(self):
        return 12

    def __iter__(self):
        shift, worker = float(torch.rand(())), get_worker_info()
        for i in range(12)[worker and worker.id :: worker.num_workers if worker else 1]:
            yield dict(inputs=torch.tensor([i + shift, random.random(), np.random.uniform()]))


OTHER_LOADERS = {
    'draws with each batch': lambda **kwargs: DataLoader(Seen(), batch_sampler=ByGroups(12), **kwargs),
    'a generator of its own': lambda **kwargs: DataLoader(
        Seen(), 4, shuffle=True, generator=torch.Generator().manual_seed(0), **kwargs
    ),
    'a stream': lambda **kwargs: DataLoader(Stream(), 4, **kwargs),
}


WORKERS = [(0, False, 0), (2, False, 2), (2, True, 2), (0, False, 2), (2, True, 0)]


@pytest.mark.parametrize(
    ('kind', 'workers', 'persistent', 'then'),
    # a stream is cut among its workers
    [(kind, *case) for kind in OTHER_LOADERS for case in WORKERS if kind != 'a stream' or case[0] == case[2]],
)
def test_other_loaders(tmp_path, kind, workers, persistent, then):
    """Straight, and resumed after the second of four epochs, with ``then`` workers."""

    def train(folder, epochs, resume=False):
        count = then if resume else workers
        loader = OTHER_LOADERS[kind](num_workers=count, persistent_workers=persistent and count > 0)
        run, keep = toy(folder, epochs=epochs, train_dataloader=loader, resume=resume), Keep()
        run.register_hook(SeedHook())
        run.register_hook(keep)
        run.train()
        return keep.loaded

    whole = train(tmp_path / 'whole', 4)
    first = train(tmp_path / 'cut', 2)
    assert first + train(tmp_path / 'cut', 4, resume=True) == whole
    epochs = [whole[i * len(whole) // 4 : (i + 1) * len(whole) // 4] for i in range(4)]
    assert len(set(map(tuple, epochs))) == 4


@pytest.mark.parametrize('persistent', [True, False])
def test_iterations_with_workers_and_a_sampler_that_draws(tmp_path, persistent):
    """On openmmlab the first pass has begun before any hook; what comes after it is numbered."""
    loader = OTHER_LOADERS['a generator of its own'](num_workers=1, persistent_workers=persistent)
    run = toy(tmp_path, train_dataloader=loader, train_cfg=ITERS)
    run.register_hook(SeedHook())
    asked = []

    class Ask(Hook):
        def after_train_iter(self, runner, **_):
            asked.append(type(runner.train_loop.dataloader_iterator._iterator._index_sampler))

    run.register_hook(Ask())
    run.train()
    assert asked[-1] is NumberedBatches


def test_who_begins_the_loader_before_the_training_changes_nothing(tmp_path):
    class First(Hook):
        def before_train(self, runner):
            for _ in zip(range(1), runner.train_dataloader, strict=False):
                pass

    alone = kept(tmp_path / 'alone', num_workers=2, persistent_workers=True)
    looked_at = kept(tmp_path / 'peek', hooks=[First()], num_workers=2, persistent_workers=True)
    assert looked_at.loaded == alone.loaded


def load(key, seed=0, data=None, rank=0):
    """What is drawn for the batch of this epoch and number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed_module, 'get_rank', lambda: rank)
        batches = NumberedBatches([[0]])
        batches.begin(seed, *key)
    (batch,) = batches
    data = Chances() if data is None else data
    (item,) = data.__getitems__(batch) if hasattr(data, '__getitems__') else [data[i] for i in batch]
    return tuple(item['inputs'].tolist())


def test_loading_depends_on_seed_epoch_number_and_rank():
    seen = [load((0, 0)), load((0, 0), seed=1), load((1, 0)), load((0, 1)), load((0, 0), rank=1)]
    assert len(set(seen)) == 5
    assert load((0, 1)) == seen[3]
    assert load((0, 1), data=Subset(Chances(), [3, 4])) == seen[3]  # which loads batches itself


def test_only_loading_seeds():
    """Not a batch on its way to a worker, or somebody's copy of it; and loading seeds once, for all parts of it."""
    (batch,) = NumberedBatches([[1, 2]])
    before = generators()
    again = pickle.loads(pickle.dumps(copy.copy(batch)))
    assert not differences(before, generators())
    assert list(again) == [1, 2]
    after = generators()
    assert differences(before, after)
    random.random(), np.random.rand(), torch.rand(())
    assert list(again) == [1, 2]
    assert all(differences(one, other) for one, other in zip(after, generators(), strict=True))


def test_each_pass_has_an_order_of_its_own(tmp_path):
    """In an iteration-based loop; a sampler's own generator counts by its seed, which may be the rank's."""

    def passes(folder, **kwargs):
        run, keep = toy(folder, train_dataloader=DataLoader(Seen(), 4, shuffle=True, **kwargs), train_cfg=ITERS), Keep()
        run.register_hook(SeedHook())
        run.register_hook(keep)
        run.train()
        indices = keep.loaded[::3]
        return [tuple(indices[i : i + 12]) for i in range(0, 36, 12)]

    plain = passes(tmp_path / 'plain')
    ranks = [passes(tmp_path / str(i), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    assert all(sorted(order) == list(range(12)) for order in plain)
    assert len({*plain, *ranks[0], *ranks[1]}) == 9


def test_what_is_no_list_of_indices_is_handed_on():
    """A data set with its own ``__getitems__`` may want slices."""
    assert list(NumberedBatches([slice(0, 4), slice(4, 8)])) == [slice(0, 4), slice(4, 8)]
    found = list(NumberedBatches([(0, 1), range(2), np.arange(2), torch.arange(2)]))
    assert [[type(i) for i in batch] for batch in found] == [[int, int]] * 4
    assert found == [[0, 1]] * 4


def test_numbered_batches_are_the_sampler():
    """To those who read or set its attributes, and to those who copy it."""
    inner = BatchSampler(SequentialSampler(range(8)), 4, False)
    batches = NumberedBatches(inner)
    assert isinstance(batches, BatchSampler)
    batches.batch_size = 2
    assert inner.batch_size == 2
    copied = copy.deepcopy(batches)
    copied.begin(0, 3)
    assert [batch.key[2:4] for batch in copied] == [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert [batch.key[2:4] for batch in batches] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_steps_depend_on_iteration_and_rank(monkeypatch):
    def drawn(iteration, rank):
        monkeypatch.setattr(seed_module, 'get_rank', lambda: rank)
        SeedHook().before_train_iter(SimpleNamespace(seed=3, iter=iteration), 0)
        return random.random(), np.random.uniform(), float(torch.rand(()))

    assert len({drawn(*key) for key in [(0, 0), (1, 0), (0, 1)]}) == 3
    assert drawn(1, 0) == drawn(1, 0)


def test_a_loader_without_batches_is_told(tmp_path, monkeypatch):
    sampler = SequentialSampler(range(12))
    sampler.set_epoch = lambda epoch: None  # or MMEngine asks the batch sampler for one
    run = toy(tmp_path, epochs=1, train_dataloader=DataLoader(Alone(), batch_size=None, sampler=sampler))
    run.register_hook(SeedHook())
    told = []
    monkeypatch.setattr(run.logger, 'warning', told.append)
    run.train()
    assert 'what the training set draws is not seeded: its loader makes no batches' in told


def test_a_loader_of_ones_own(tmp_path, monkeypatch):
    """MMEngine asks it for little."""

    class Own:
        dataset = Chances()
        sampler = SimpleNamespace(set_epoch=lambda epoch: None)

        def __len__(self):
            return 2

        def __iter__(self):
            return iter([dict(inputs=torch.rand(2, 3)) for _ in range(2)])

    run = toy(tmp_path, epochs=1, train_dataloader=Own())
    run.register_hook(SeedHook())
    told = []
    monkeypatch.setattr(run.logger, 'warning', told.append)
    run.train()
    assert 'what the training set draws is not seeded: its loader makes no batches' in told


def test_what_is_drawn_before_an_epoch_resumes(tmp_path):
    class Draw(Hook):
        def __init__(self):
            self.drawn = []

        def before_train_epoch(self, runner):
            self.drawn.append((random.random(), np.random.uniform(), float(torch.rand(()))))

    def drawn(folder, **kwargs):
        run, draw = toy(folder, **kwargs), Draw()
        run.register_hook(SeedHook())
        run.register_hook(draw)
        run.train()
        return draw.drawn

    whole, first = drawn(tmp_path / 'whole', epochs=4), drawn(tmp_path / 'cut', epochs=2)
    assert first + drawn(tmp_path / 'cut', epochs=4, resume=True) == whole
    assert len({*whole}) == 4


def test_a_test_builds_no_training_set():
    """Which the runner's property would do."""
    SeedHook().after_load_checkpoint(SimpleNamespace(_resume=False), dict(sampler_seed=1))


@pytest.mark.parametrize('shuffle', [False, True])
def test_another_order_is_told(tmp_path, monkeypatch, shuffle):
    """Of MMEngine's sampler, which has a seed, and of PyTorch's, which draws by the run's."""
    loader = dict(dataset=Chances(), batch_size=2, num_workers=1, sampler=dict(type='InfiniteSampler'))
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1)
    settings = dict(
        train_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type='mmsokd.SeedHook')],
    )
    if shuffle:
        settings['train_dataloader'] = DataLoader(Chances(), 2, shuffle=True, num_workers=1)
    first = toy(tmp_path, randomness=dict(seed=None), **settings)
    first.train()
    told = []
    for randomness in (dict(seed=None), dict(seed=first.seed)):
        run = toy(tmp_path, randomness=randomness, resume=True, **settings)
        monkeypatch.setattr(run.logger, 'warning', told.append)
        run.train()
    messages = [text for text in told if 'another order' in text]
    assert len(messages) == (0 if LAZY else 1)
    assert all(f'randomness=dict(seed={first.seed})' in text for text in messages)


# ---- killed ---------------------------------------------------------------------------------------------------------


def searching(work_dir, resume):
    """The whole of SoKD, until the search is over."""
    return runner(work_dir, resume=resume, epochs=20, search=50, hooks=[dict(type='EMAHook')])


@pytest.mark.slow
@pytest.mark.parametrize('kills', [6])
def test_a_killed_run_ends_as_the_undisturbed_one(tmp_path, kills):
    """SIGKILL at random moments; max_keep_ckpts=1."""
    Lives(searching, tmp_path / 'whole', interval=3).finish()
    lives = Lives(searching, tmp_path / 'killed', interval=3)
    torn = [lives.kill() for _ in range(kills)]
    assert 0 < lives.saved < 60
    lives.finish()
    assert not differences(saved(tmp_path / 'whole'), saved(tmp_path / 'killed'))
    print(f'{kills} kills, {sum(torn)} of them while a file was written; the end is the same bit by bit')


def command_line(folder, *args):
    """The user's own: ``tools/train.py``, in a process of its own."""
    train = [sys.executable, ROOT / 'tools' / 'train.py', folder / 'sokd.py', '--work-dir', folder / 'work', *args]
    env = environment(PYTHONPATH=str(ROOT))
    return subprocess.Popen(train, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_train_py_is_killed_and_resumed(tmp_path):
    """SIGKILL a random while after a random iteration, three times, each followed by ``--resume``."""
    data = make_classes(tmp_path / 'pictures')
    logger = dict(type='LoggerHook', interval=1)
    hooks = [dict(type='mmsokd.GuardHook'), dict(type='mmsokd.SeedHook'), dict(SEARCH, search_iters=20)]
    for name in ('whole', 'killed'):
        cfg = launched(data, tmp_path, 4, hooks=hooks)  # three iterations an epoch
        cfg.merge_from_dict(dict(train_cfg=dict(max_epochs=10, val_interval=10), default_hooks=dict(logger=logger)))
        (tmp_path / name).mkdir()
        cfg.dump(tmp_path / name / 'sokd.py')
    whole = command_line(tmp_path / 'whole')
    said = whole.communicate()[0]
    assert whole.returncode == 0, said[-3000:]

    rng, resumed = random.Random(0), 0
    for kill in range(3):
        process = command_line(tmp_path / 'killed', *['--resume'][:kill])
        iterations = rng.randint(4, 6)
        for line in process.stdout:
            resumed += 'resumed epoch' in line
            iterations -= 'Epoch(train)' in line
            if not iterations:
                break
        time.sleep(rng.uniform(0, 0.4))  # it saves for half of the time
        process.kill()
        assert process.wait() == -signal.SIGKILL
    reached = saved(tmp_path / 'killed' / 'work')['clock']['iter']
    assert resumed > 0
    assert 0 < reached < 30
    last = command_line(tmp_path / 'killed', '--resume')
    said = last.communicate()[0]
    assert last.returncode == 0, said[-3000:]
    assert f'resumed epoch: {reached // 3}, iter: {reached}' in said
    ends = [saved(tmp_path / name / 'work') for name in ('whole', 'killed')]
    assert {'state_dict', 'optimizer', 'policy_search'} <= ends[0].keys()
    assert any('policy' in key for key in ends[0]['state_dict'])
    assert ends[0]['clock']['iter'] == 30
    assert not differences(*ends)
    print(f'3 kills, {resumed} of them resumed before; iteration {reached} of 30 reached; the same end')
