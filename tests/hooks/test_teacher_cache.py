"""TeacherCacheHook in whole trainings: the same losses with teachers that run in the first epoch alone."""

import copy
import functools
import io
import platform
import random

import lmdb
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmpretrain.structures import DataSample
from rich.console import Console
from torch import nn

from mmsokd.hooks import TeacherCacheHook, teacher_cache
from mmsokd.hooks.common import distiller_of
from mmsokd.hooks.teacher_cache import pictures_in, random_parts
from tests.builders import losses_of, raw_cls_batch
from tests.builders_training import BATCH, COUNT, Pictures, network, runner
from tests.two_ranks import on_two_ranks


class Static(torch.utils.data.Dataset):
    """Noise, the same picture every time; a pipeline as MMEngine's data sets have one."""

    metainfo = dict(classes=('a', 'b', 'c', 'd', 'e'))

    def __init__(self, *transforms, count=COUNT):
        self.count = count
        self.pipeline = Compose([*transforms])

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        picture = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        sample = DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % 5)
        return self.pipeline(dict(inputs=picture, data_samples=sample))


class RandomMirror:
    """Two views."""

    def __call__(self, results):
        if random.random() < 0.5:
            results['inputs'] = results['inputs'].flip(-1)
        return results


class RandomShift:
    """Thirty-two."""

    def __call__(self, results):
        results['inputs'] = results['inputs'].roll(int(torch.randint(32, ())), -1)
        return results


HOOK = dict(dtype='float32')


def made(work_dir, *transforms, loop='epochs', hook=HOOK, epochs=3, student=None, **kwargs):
    """A SoKD training of a tiny classifier; ``hook``: TeacherCacheHook's arguments, or None."""
    model = dict(
        type='mmsokd.SoKDDistiller',
        student=student or network(8),
        teacher=network(16),
        terms=dict(
            loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer3'),
            loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc'),
        ),
        probe_size=32,
    )
    hooks = [dict(type='mmsokd.TeacherCacheHook', **hook)] if hook is not None else []
    run = runner(work_dir, loop, epochs, model=model, hooks=hooks, validates=False, **kwargs)
    loader = run._train_dataloader
    loader['dataset'] = Static(*transforms)
    return run


def trained(run):
    """What the log has in the end, and how often the teacher was run."""
    counts = []
    teacher = distiller_of(run).teacher
    hook = teacher.backbone.register_forward_hook(lambda module, args, out: counts.append(len(args[0])))
    run.train()
    hook.remove()
    log = {key: scalar.data[0].copy() for key, scalar in run.message_hub.log_scalars.items() if 'time' not in key}
    return log, counts


def losses_in(log):
    return {key: torch.tensor(values) for key, values in log.items() if 'loss' in key or 'sokd' in key}


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_a_training_is_the_same_and_its_teacher_runs_in_one_epoch(tmp_path, loop, workers):
    plain, without = trained(made(tmp_path / 'plain', loop=loop, hook=None, workers=workers))
    ours, counts = trained(made(tmp_path / 'ours', loop=loop, workers=workers))
    assert sum(without) == 3 * COUNT
    assert sum(counts) == COUNT
    assert losses_in(plain).keys() == losses_in(ours).keys()
    for key, values in losses_in(plain).items():
        assert len(values) == 9
        torch.testing.assert_close(losses_in(ours)[key], values, rtol=1e-5, atol=1e-6, equal_nan=True, msg=key)
    assert ours['train/teacher.cached'].tolist() == [0.0] * 3 + [1.0] * 6
    assert (tmp_path / 'ours' / 'teacher_cache' / 'teacher' / 'data.mdb').is_file()


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_a_resumed_training_reads_on(tmp_path, loop):
    made(tmp_path, loop=loop, epochs=1).train()
    run = made(tmp_path, loop=loop, epochs=3, resume=True)
    log, counts = trained(run)
    assert counts == []
    assert set(log['train/teacher.cached'][-6:]) == {1.0}


@pytest.mark.parametrize('fill', [False, True])
def test_several_machines_have_one_each(tmp_path, monkeypatch, fill):
    """A file server may give them one work dir. Each fills its own whole."""
    monkeypatch.setattr(teacher_cache, 'all_gather_object', lambda name: [name, 'another'])
    _, counts = trained(made(tmp_path, epochs=1, hook=dict(HOOK, fill=fill)))
    assert sum(counts) == COUNT
    assert (tmp_path / 'teacher_cache' / platform.node() / 'teacher' / 'data.mdb').is_file()


def test_another_training_may_share_it(tmp_path):
    hook = dict(dtype='bfloat16', cache_dir=str(tmp_path / 'shared'))
    first = made(tmp_path / 'a', hook=hook, epochs=1)
    first.train()
    second = made(tmp_path / 'b', hook=hook, epochs=1, student=network(4))
    distiller_of(second).teacher.load_state_dict(distiller_of(first).teacher.state_dict())
    assert trained(second)[1] == []
    assert not distiller_of(second).caches  # closed
    with pytest.raises(ValueError, match=r'^teacher: expected an empty folder, .* another weights'):
        made(tmp_path / 'c', hook=hook, randomness=dict(seed=4)).train()


def test_random_views_are_told_before_the_first_step(tmp_path):
    run = made(tmp_path, RandomShift())
    message = (
        r'^TeacherCacheHook: expected pictures that the pipeline shows in 1 view, found \d of picture 0 in 8 times; '
        r"these may be random: \['RandomShift'\]; leave them out"
    )
    with pytest.raises(ValueError, match=message):
        run.train()
    assert run.iter == 0
    assert not distiller_of(run).caches


def test_batch_augmentations_are_told_too(tmp_path):
    student = network(8)
    student['head']['loss'] = dict(type='CrossEntropyLoss', use_soft=True)
    student['data_preprocessor'].update(
        num_classes=5, to_onehot=True, batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8)])
    )
    with pytest.raises(ValueError, match=r"found \d of picture 0 .*these may be random: \['Mixup'\]"):
        made(tmp_path, student=student).train()


def test_random_views_without_a_pipeline_to_read_are_told(tmp_path):
    run = made(tmp_path)
    run._train_dataloader['dataset'] = Pictures()
    with pytest.raises(ValueError, match=r'found \d of picture 0 in 8 times; these may be random: \[\]'):
        run.train()


def test_both_views_of_a_flip_are_stored(tmp_path):
    hook = dict(dtype='float32', views=2)
    plain, _ = trained(made(tmp_path / 'plain', RandomMirror(), hook=None, epochs=8))
    run = made(tmp_path / 'ours', RandomMirror(), hook=hook, epochs=8)
    ours, counts = trained(run)
    assert COUNT < sum(counts) <= 2 * COUNT
    for key, values in losses_in(plain).items():
        torch.testing.assert_close(losses_in(ours)[key], values, rtol=1e-4, atol=1e-5, equal_nan=True, msg=key)
    shares = ours['train/teacher.cached']
    assert shares[0] == 0
    assert any(0 < share < 1 for share in shares)
    with pytest.raises(ValueError, match=r'shows in 2 views, found \d+ of picture 0 in 12 times'):
        made(tmp_path / 'more', RandomShift(), hook=hook).train()
    with pytest.raises(ValueError, match='shows in 1 view, found 2 of picture'):
        made(tmp_path / 'less', RandomMirror()).train()


def test_another_pipelines_pictures_are_told_in_the_first_step(tmp_path):
    class Darker:
        def __call__(self, results):
            return dict(results, inputs=results['inputs'] // 2)

    hook = dict(cache_dir=str(tmp_path / 'shared'))
    made(tmp_path / 'a', hook=hook, epochs=1).train()
    other = made(tmp_path / 'b', Darker(), hook=hook)
    with pytest.raises(ValueError, match=f'expected at most {COUNT} pictures .* or some there are of another pipeline'):
        other.train()
    assert other.iter == 0


def test_a_training_in_half_precision_reads_and_learns(tmp_path):
    run = made(tmp_path, hook=dict(dtype='float16'))
    before = copy.deepcopy(distiller_of(run).student.state_dict())
    _, counts = trained(run)
    assert sum(counts) == COUNT == 3 * BATCH
    after = distiller_of(run).student.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


def test_what_is_no_distiller_is_refused(tmp_path):
    run = made(tmp_path)
    run.model = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r'^model\.type: expected a distiller'):
        TeacherCacheHook().before_train(run)


# ---- filled before the training -------------------------------------------------------------------------------------

FILL = dict(HOOK, fill=True)


class Counted(Static):
    """Knows how often a picture was loaded; ``broken`` is one that cannot be; ``repeats`` the first in the last."""

    broken = None
    repeats = False

    def __init__(self, *transforms, **kwargs):
        super().__init__(*transforms, **kwargs)
        self.loaded = []

    def __getitem__(self, i):
        self.loaded.append(i)
        if i == self.broken:
            raise OSError('no such picture')
        return super().__getitem__(0 if self.repeats and i == self.count - 1 else i)


def next_numbers():
    """Of all three generators, which then stand where they stood."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    found = random.random(), np.random.rand(), torch.rand(()).item()
    for restore, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True):
        restore(state)
    return found


class RandomTint:
    """Two views, by chance from all three generators."""

    def __call__(self, results):
        draws = random.random() + np.random.rand() + float(torch.rand(()))
        return dict(results, inputs=results['inputs'] // (1 + (draws < 1.5)))


def test_looking_and_filling_draw_nothing_from_the_training(tmp_path):
    loaded, kept = filled(tmp_path, Counted(RandomTint()), views=2)
    assert loaded > kept == COUNT


@pytest.fixture
def _looks_at_none(monkeypatch):
    """Loads nothing to compare views."""
    monkeypatch.setattr(TeacherCacheHook, '_check_views', lambda *_: [])


@pytest.mark.parametrize(('loop', 'workers'), [('epochs', 0), ('iterations', 1)])
def test_filled_before_the_training_which_is_the_same(tmp_path, loop, workers):
    plain, _ = trained(made(tmp_path / 'plain', loop=loop, hook=None, workers=workers))
    run = made(tmp_path / 'ours', loop=loop, hook=FILL, workers=workers)
    begun = []
    distiller_of(run).teacher.backbone.register_forward_hook(lambda *_: begun.append(run.iter))
    ours, counts = trained(run)
    assert counts == [BATCH] * 3
    assert begun == [0] * 3
    assert ours['train/teacher.cached'].tolist() == [1.0] * 9
    for key, values in losses_in(plain).items():
        torch.testing.assert_close(losses_in(ours)[key], values, rtol=1e-5, atol=1e-6, equal_nan=True, msg=key)


def filled(work_dir, data, **kwargs):
    """How many pictures are loaded before the first step, and how many are then there."""
    run = made(work_dir, hook=None)
    run._train_dataloader['dataset'] = data
    run.optim_wrapper = run.build_optim_wrapper(run.optim_wrapper)
    hook = TeacherCacheHook(**FILL, **kwargs)
    before = next_numbers()
    hook.before_train(run)
    assert next_numbers() == before  # what is drawn in there draws nothing from the training
    inner = run.train_dataloader.dataset
    found = len(getattr(inner, 'dataset', inner).loaded), len(distiller_of(run).caches['teacher'])
    hook.after_train(run)
    return found


@pytest.mark.usefixtures('_looks_at_none')
@pytest.mark.parametrize('repeats', [False, True])
def test_what_was_filled_is_not_loaded_again(tmp_path, monkeypatch, repeats):
    """Though pictures that are the same leave fewer than there can be."""
    monkeypatch.setattr(Counted, 'repeats', repeats)
    assert filled(tmp_path, Counted()) == (COUNT, COUNT - repeats)
    assert filled(tmp_path, Counted()) == (0, COUNT - repeats)
    more = COUNT + 1  # another data set, which has them too
    assert filled(tmp_path, Counted(count=more)) == (more, more - repeats)


@pytest.mark.parametrize('repeats', [False, True])
def test_what_was_filled_with_other_pictures_is_told_before_the_training(tmp_path, monkeypatch, repeats):
    """As many, of another data set, or pipeline; also where room is left, since two of the first were the same."""

    class Darker:
        def __call__(self, results):
            return dict(results, inputs=results['inputs'] // 2)

    monkeypatch.setattr(Counted, 'repeats', repeats)
    filled(tmp_path, Counted())
    with pytest.raises(ValueError, match=f'expected at most {COUNT} pictures .* or some there are of another pipeline'):
        filled(tmp_path, Counted(Darker()))


@pytest.mark.usefixtures('_looks_at_none')
def test_repetitions_are_not_loaded(tmp_path):
    repeated = torch.utils.data.Subset(Counted(), [*range(COUNT)] * 5)
    assert filled(tmp_path, repeated) == (COUNT + BATCH, COUNT)


@pytest.mark.usefixtures('_looks_at_none')
def test_a_fill_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, 'broken', BATCH + 1)
    run = made(tmp_path, hook=FILL, epochs=1)
    run._train_dataloader['dataset'] = Counted()
    with pytest.raises(OSError, match='no such picture'):
        run.train()
    assert not distiller_of(run).caches  # closed
    monkeypatch.setattr(Counted, 'broken', None)
    run = made(tmp_path, hook=FILL, epochs=1)
    run._train_dataloader['dataset'] = Counted()
    log, counts = trained(run)
    assert counts == [BATCH] * 2
    assert set(log['train/teacher.cached']) == {1.0}


def test_the_other_view_is_stored_on_the_way(tmp_path):
    run = made(tmp_path, RandomMirror(), hook=dict(FILL, views=2), epochs=8)
    log, counts = trained(run)
    assert counts[:3] == [BATCH] * 3
    assert COUNT < sum(counts) <= 2 * COUNT
    assert 0 < log['train/teacher.cached'][0] < 1


@OPTIM_WRAPPERS.register_module()
class HalfWrapper(OptimWrapper):
    """MMEngine's own asks for a GPU."""

    def optim_context(self, model):
        return torch.autocast('cpu', torch.bfloat16)


def test_a_fill_runs_under_the_trainings_autocast(tmp_path):
    optimizer = dict(type='SGD', lr=0.01)
    hook = dict(FILL, cache_dir=str(tmp_path / 'shared'))
    half = dict(optim_wrapper=dict(type='HalfWrapper', optimizer=optimizer))
    run = made(tmp_path / 'a', hook=hook, epochs=1, **half)
    seen = []
    distiller_of(run).teacher.backbone.layer1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    run.train()
    assert set(seen) == {torch.bfloat16}
    with pytest.raises(ValueError, match=r'^teacher: expected an empty folder, .* another autocast'):
        made(tmp_path / 'b', hook=hook).train()


def test_a_disk_that_gets_full_ends_the_fill_and_not_the_training(tmp_path, monkeypatch):
    def full(self, *args):
        self.writes = False

    monkeypatch.setattr('mmsokd.distillers.cache.TeacherCache._write', full)
    _, counts = trained(made(tmp_path, hook=FILL))
    assert counts == [BATCH] * (1 + 9)
    with lmdb.open(str(tmp_path / 'teacher_cache' / 'teacher')).begin() as txn:
        assert b'filled' not in txn.get(b'manifest')


@pytest.mark.parametrize('is_terminal', [True, False])
def test_a_bar_on_a_terminal_alone(tmp_path, monkeypatch, is_terminal):
    shown = io.StringIO()
    console = functools.partial(Console, file=shown, force_terminal=is_terminal)
    monkeypatch.setattr(teacher_cache, 'Console', lambda stderr: console())
    made(tmp_path, hook=FILL, epochs=1).train()
    assert ('caching teachers' in shown.getvalue()) == is_terminal
    assert ('100%' in shown.getvalue()) == is_terminal
    if not is_terminal:
        assert shown.getvalue() == ''


def fill_on_a_rank(rank, folder):
    _, counts = trained(made(folder / 'run', hook=dict(FILL, cache_dir=str(folder / 'cache'))))
    assert counts == [4, 2]  # of six, in the fill


@pytest.mark.slow
def test_two_ranks_fill_one_together(tmp_path):
    on_two_ranks(fill_on_a_rank, tmp_path)


# ---- what it finds in data sets -------------------------------------------------------------------------------------


class Listed(BaseDataset):
    """MMEngine's wrappers take its own."""

    def __init__(self, count, pipeline=()):
        self.count = count
        super().__init__(pipeline=[*pipeline])

    def load_data_list(self):
        return [dict() for _ in range(self.count)]


class Labelled(Listed):
    """Of rare classes and a frequent one."""

    def get_cat_ids(self, idx):
        return [max(0, idx - 8)]


def test_the_number_of_pictures():
    twelve = Listed(12)
    assert pictures_in(twelve) == 12
    assert pictures_in(RepeatDataset(twelve, times=5)) == 12
    assert pictures_in(ConcatDataset([twelve, Listed(3)])) == 15
    assert pictures_in(ClassBalancedDataset(Labelled(12), oversample_thr=0.9)) == 12
    assert pictures_in(torch.utils.data.Subset(twelve, [0, 1])) == 2


def test_what_may_be_random_is_found_in_wrappers_and_compositions():
    from mmcv.transforms import RandomApply, Resize
    from mmdet.datasets.transforms import PhotoMetricDistortion
    from mmdet.models import DetDataPreprocessor
    from mmpretrain.datasets.transforms import ColorJitter, Lighting, RandomCrop

    random = [RandomApply([ColorJitter()], 0.5), RandomCrop(8), PhotoMetricDistortion(), Lighting([1], [[1]])]
    preprocessor = DetDataPreprocessor(
        batch_augments=[dict(type='mmdet.BatchSyncRandomResize', random_size_range=(64, 128), size_divisor=32)]
    )
    listed = Listed(1, [Resize((8, 8)), *random])
    for dataset in (listed, RepeatDataset(listed, 2), ConcatDataset([Listed(1), listed])):
        names = random_parts(dataset, None)
        assert random_parts(dataset, preprocessor) == ['BatchSyncRandomResize', *names]
        assert names == ['RandomApply', 'ColorJitter', 'RandomCrop', 'PhotoMetricDistortion', 'Lighting']


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(cache_dir=''), r"^TeacherCacheHook\.cache_dir: expected a folder, found ''"),
        (dict(cache_dir=3), r'^TeacherCacheHook\.cache_dir: expected a folder, found 3'),
        (dict(dtype='fp16'), r"^TeacherCacheHook\.dtype: expected one of .* found 'fp16'; did you mean 'float16'"),
        (dict(views=0), r'^TeacherCacheHook\.views: expected an integer >= 1, found 0'),
        (dict(fill='yes'), r"^TeacherCacheHook\.fill: expected True or False, found 'yes'"),
        (dict(views=True), r'^TeacherCacheHook\.views: expected an integer'),
    ],
)
def test_an_option_that_cannot_be_is_told(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TeacherCacheHook(**kwargs)


def test_what_others_ask_the_teacher_is_not_stored(tmp_path):
    """A drawing, say, of pictures that are none of the training's."""
    run = made(tmp_path, epochs=1)
    run.train()
    model = distiller_of(run).eval()
    model.open_caches(tmp_path / 'teacher_cache', 'float32', COUNT)
    losses_of(model, raw_cls_batch(2, size=32, seed=9))
    assert len(model.caches['teacher']) == COUNT
    model.close_caches()
