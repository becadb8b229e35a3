"""A teacher's outputs on disk: what is read is what the teacher gives, for this very picture or not at all."""

import multiprocessing
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.structures import BaseDataElement

from mmsokd.distillers.cache import fingerprints, identity
from tests.builders import (
    classifier,
    distiller,
    losses_of,
    make_it_speak,
    raw_batch,
    raw_cls_batch,
    raw_seg_batch,
    retinanet,
    segmentor,
)
from tests.two_ranks import assert_same, on_two_ranks

HINT = dict(type='mmsokd.FitNetLoss', tap='backbone.layer4')
CLS = dict(loss_hint=HINT, loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc'))
TASKS = {
    'classification': (lambda: (classifier(), classifier(16)), CLS, lambda: raw_cls_batch(4)),
    'segmentation': (
        lambda: (segmentor(), segmentor(16)),
        dict(loss_hint=HINT, loss_cwd=dict(type='mmsokd.CWDLoss', tap='decode_head.conv_seg')),
        raw_seg_batch,
    ),
    'detection': (
        lambda: (retinanet(16), retinanet(24)),
        dict(loss_pkd=dict(type='mmsokd.PKDLoss', tap='neck'), loss_fgd=dict(type='mmsokd.FGDLoss', tap='neck[0]')),
        raw_batch,
    ),
}
ROUNDING = dict(float32=1e-6, float16=1e-3, bfloat16=1e-2)
MANY = 1000


def built(task='classification', kind='Distiller', pace=None, seed=0, **kwargs):
    """With the same weights for the same arguments."""
    torch.manual_seed(seed)
    models, terms, batch = TASKS[task]
    student, teacher = models()
    cfg = dict(student=student, teacher=dict(cfg=teacher, **(pace or {})), terms=terms, probe_size=64)
    model = distiller(kind, **{**cfg, **kwargs}).train()
    for guard in model._teachers.values():
        make_it_speak(guard.module, batch())
    return model


@contextmanager
def cached(model, folder, dtype='float32', capacity=MANY, hint='HINT'):
    model.open_caches(folder, dtype, capacity, hint)
    try:
        yield next(iter(model.caches.values()))
    finally:
        model.close_caches()


@contextmanager
def counted(model):
    """How many pictures the teacher's backbone was run on, run by run."""
    counts = []
    hook = next(iter(model.teachers.values())).backbone.register_forward_hook(
        lambda module, args, out: counts.append(len(args[0]))
    )
    try:
        yield counts
    finally:
        hook.remove()


def flipped(batch, *which):
    for i in which:
        batch['inputs'][i] = batch['inputs'][i].flip(-1)
    return batch


def assert_losses_close(ours, theirs, rtol):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        expected = value if isinstance(value, list) else [value]
        found = ours[name] if isinstance(ours[name], list) else [ours[name]]
        for pair in zip(found, expected, strict=True):
            torch.testing.assert_close(*pair, rtol=rtol, atol=rtol, equal_nan=True, msg=name)


@pytest.mark.parametrize('dtype', ROUNDING)
@pytest.mark.parametrize('task', TASKS)
def test_the_losses_are_those_of_an_uncached_run(tmp_path, task, dtype):
    plain, ours = built(task), built(task)
    batch = TASKS[task][2]
    n = len(batch()['inputs'])
    with cached(ours, tmp_path, dtype) as cache, counted(ours) as counts:
        runs = []
        for _ in range(3):
            runs.append(losses_of(ours, batch()))
            assert_losses_close(runs[-1], losses_of(plain, batch()), ROUNDING[dtype])
        for name in plain.terms:
            assert torch.equal(runs[0][f'distill.{name}'], runs[1][f'distill.{name}'])  # a miss is rounded as a hit is
        assert counts == [n]
        assert (cache.read, cache.asked, len(cache)) == (2 * n, 3 * n, n)
        sum(value for name, value in runs[2].items() if 'distill' in name).backward()
    assert all(p.grad is not None for p in ours.terms.parameters())
    with counted(ours) as counts:  # closed
        losses_of(ours, batch())
    assert counts == [n]


def test_rounding_to_half_precision_is_there():
    values = torch.linspace(-3, 3, 1001)
    assert not torch.equal(values.half().float(), values)


@pytest.mark.parametrize('kind', ['refine', 'areas', 'both'])
def test_sokd_refines_what_is_read(tmp_path, kind):
    off = dict(refine=dict(areas=None), areas=dict(refine=None), both={})[kind]
    plain, ours = (built('detection', 'SoKDDistiller', **off) for _ in range(2))
    with cached(ours, tmp_path), counted(ours) as counts:
        for seed in range(3):
            found = []
            for model in (ours, plain):
                torch.manual_seed(seed)
                found.append(losses_of(model))
            assert_losses_close(*found, 1e-6)
    assert counts == [2]
    if kind != 'areas':
        assert 'sokd.norm_ratio' in found[0]


@pytest.mark.parametrize(
    'pace',
    [
        dict(stream=True),
        dict(channels_last=True),
        dict(autocast='bfloat16'),
        dict(compile=dict(backend='eager')),
        dict(trim=True),
        dict(channels_last=True, autocast='bfloat16', stream=True),
    ],
)
def test_at_every_pace(tmp_path, pace):
    plain, ours = built(pace=pace), built(pace=pace)
    with cached(ours, tmp_path):
        for _ in range(2):
            assert_losses_close(*(losses_of(model, raw_cls_batch(4)) for model in (ours, plain)), 1e-6)


def test_under_autocast_the_batchs_dtype_comes_back(tmp_path):
    model = built()
    data = model.data_preprocessor(raw_cls_batch(4), True)
    with cached(model, tmp_path, 'bfloat16'), torch.autocast('cpu', torch.bfloat16):
        for _ in range(2):
            found = model._teachers['teacher'].features(**data, training=True)
            assert {level.dtype for levels in found.values() for level in levels} == {torch.float32}


def test_another_view_is_another_picture(tmp_path):
    plain, ours = built(), built()
    with cached(ours, tmp_path) as cache, counted(ours) as counts:
        losses_of(ours, raw_cls_batch(4))
        losses_of(plain, raw_cls_batch(4))
        views = (flipped(raw_cls_batch(4), 1, 2) for _ in range(2))
        assert_losses_close(*(losses_of(m, views_of) for m, views_of in zip((ours, plain), views, strict=True)), 1e-6)
        assert counts == [4, 2]  # only those that are not there
        losses_of(ours, flipped(raw_cls_batch(4), 1))
        assert counts == [4, 2]
        assert len(cache) == 6


def test_one_grey_level_is_another_picture(tmp_path):
    model, batch = built(), raw_cls_batch(2)
    with cached(model, tmp_path), counted(model) as counts:
        losses_of(model, batch)
        batch['inputs'][1][2, 63, 63] ^= 1
        losses_of(model, batch)
    assert counts == [2, 1]


def test_what_the_teacher_sees_counts(tmp_path):
    """Its own normalization is part of it: the same pictures, normalised otherwise, are others."""
    own = dict(type='ClsDataPreprocessor', mean=[100.0] * 3, std=[50.0] * 3, to_rgb=True)
    one, other = built(), built(teacher=dict(cfg=classifier(16, data_preprocessor=own)))
    other.teacher.load_state_dict(one.teacher.state_dict())
    with cached(one, tmp_path):
        losses_of(one, raw_cls_batch(2))
    with cached(other, tmp_path) as cache, counted(other) as counts:
        losses_of(other, raw_cls_batch(2))
        assert (counts, len(cache)) == ([2], 4)


def test_looking_and_validating_leave_it_alone(tmp_path):
    model = built('detection', 'SoKDDistiller')
    with cached(model, tmp_path) as cache:
        data = model.data_preprocessor(raw_batch(), True)
        model.detect_areas(**data)
        model.eval()
        losses_of(model)
        assert (len(cache), cache.asked) == (0, 0)


def test_a_term_that_rests_asks_for_nothing_and_one_that_wakes_finds_it(tmp_path):
    from mmengine.logging import MessageHub

    terms = dict(CLS, loss_hint=dict(HINT, loss_weight=[(0.0, 0.0), (0.4, 0.0), (0.5, 1.0)]))
    plain, ours = built(terms=terms), built(terms=terms)
    hub = MessageHub.get_current_instance()
    hub.update_info('max_iters', 10)
    with cached(ours, tmp_path), counted(ours) as counts:
        for now in (0, 9):  # the first step stores both taps, though it needs one
            hub.update_info('iter', now)
            assert_losses_close(*(losses_of(model, raw_cls_batch(2)) for model in (ours, plain)), 1e-6)
    assert counts == [2]


def test_several_teachers_have_one_each(tmp_path):
    terms = dict(loss_a=dict(HINT, teacher='a'), loss_b=dict(type='mmsokd.KDLoss', tap='head.fc', teacher='b'))
    both = dict(a=dict(cfg=classifier(16)), b=dict(cfg=classifier(16)))
    plain, ours = (built(teacher=None, teachers=both, terms=terms) for _ in range(2))
    with cached(ours, tmp_path):
        assert [*ours.caches] == ['teachers.a', 'teachers.b']
        for _ in range(2):
            assert_losses_close(*(losses_of(model, raw_cls_batch(2)) for model in (ours, plain)), 1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {'a', 'b'}


def test_the_next_training_goes_on_with_it(tmp_path):
    with cached(built(), tmp_path):
        losses_of(built(), raw_cls_batch(2))
    one, two = built(), built()
    with cached(one, tmp_path) as cache:
        losses_of(one, raw_cls_batch(4))
        assert len(cache) == 4
    with cached(two, tmp_path), counted(two) as counts:
        losses_of(two, raw_cls_batch(4))
    assert counts == []
    reordered = built(terms=dict(reversed(CLS.items())))  # the same taps, met in another order
    with cached(reordered, tmp_path), counted(reordered) as counts:
        assert_losses_close(losses_of(reordered, raw_cls_batch(4)), losses_of(built(), raw_cls_batch(4)), 1e-6)
    assert counts == []


# ---- what is refused ------------------------------------------------------------------------------------------------


def dilated():
    """Of the same weights and sizes."""
    other = classifier(16)
    other['backbone']['dilations'] = (1, 1, 1, 2)
    return other


@pytest.mark.parametrize(
    ('other', 'dtype', 'names'),
    [
        (dict(seed=1), 'float16', 'weights'),
        (dict(terms=dict(loss_hint=HINT)), 'float16', 'taps'),
        (dict(pace=dict(autocast='bfloat16')), 'float16', 'autocast'),
        (dict(), 'bfloat16', 'dtype'),
        (dict(teacher=dict(cfg=dilated())), 'float16', 'network'),
        (dict(seed=1), 'float32', 'dtype and another weights'),
    ],
)
def test_another_teachers_outputs_are_refused(tmp_path, other, dtype, names):
    model = built()
    with cached(model, tmp_path, 'float16'):
        losses_of(model, raw_cls_batch(2))
    other = built(**other)
    if names == 'network':
        other.teacher.load_state_dict(model.teacher.state_dict())
    message = rf"^teacher: expected an empty folder, or this teacher's cache, found that .* has one of another {names};"
    with pytest.raises(ValueError, match=message), cached(other, tmp_path, dtype):
        pass


def test_where_a_module_lies_in_memory_is_not_its_identity():
    class Odd(torch.nn.Linear):
        def extra_repr(self):
            return f'{object()!r}'

    torch.manual_seed(0)
    one = Odd(2, 2)
    assert identity(one) == identity(one)
    assert identity(one) != identity(torch.nn.Linear(2, 2))


def test_pictures_of_another_size_are_refused(tmp_path):
    model = built()
    with cached(model, tmp_path):
        losses_of(model, raw_cls_batch(2))
        with pytest.raises(ValueError, match=r'^teacher: expected pictures of \(3, 64, 64\), .* found \(3, 32, 32\)'):
            losses_of(model, raw_cls_batch(2, size=32))


def test_more_pictures_than_there_can_be_are_refused(tmp_path):
    model = built()
    message = r"^teacher: expected at most 6 pictures in '.*', found more: .*; HINT"
    with cached(model, tmp_path, capacity=6) as cache:
        losses_of(model, raw_cls_batch(4))
        with pytest.raises(ValueError, match=message):
            losses_of(model, raw_cls_batch(4, seed=1))
        assert len(cache) == 4  # none of that batch


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_features_that_the_dtype_does_not_hold(tmp_path, dtype):
    model = built()
    with torch.no_grad():
        model.teacher.head.fc.weight.mul_(1e6)
    with cached(model, tmp_path, dtype) as cache:
        if dtype == 'bfloat16':
            losses_of(model, raw_cls_batch(2))
            return
        with pytest.raises(ValueError, match=r'^teacher: expected features that float16 holds, to 6\.55e\+04, found '):
            losses_of(model, raw_cls_batch(2))
        assert len(cache) == 0


def test_a_disk_without_room_is_told_in_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(2**40, 2**40 - 2**20, 2**20))
    model = built()
    with (
        cached(model, tmp_path, capacity=10**6),
        pytest.raises(ValueError, match=r"^teacher: expected .* GiB of free disk at '.*', .* found 0\.000977; give"),
    ):
        losses_of(model, raw_cls_batch(2))


@pytest.mark.parametrize('kind', ['refine.at', 'TST', 'IAKD', 'EKD', 'itself'])
def test_what_runs_the_teacher_otherwise_is_refused(tmp_path, kind):
    if kind == 'refine.at':
        refine = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
        model = built(kind='SoKDDistiller', refine=refine, terms=dict(loss_kd=CLS['loss_kd']))
        message = r"^TeacherCacheHook: expected refine\.at=None, .* found 'backbone\.layer3'"
    else:
        model = {
            'TST': lambda: built(kind='TSTDistiller'),
            'IAKD': lambda: built(kind='IAKDDistiller', stages=['backbone.layer2']),
            'EKD': lambda: distiller(
                'OnlineDistiller',
                student=classifier(),
                teacher=None,
                online_teacher=dict(cfg=classifier(16)),
                terms=dict(loss_hint=HINT),
                probe_size=64,
            ),
            'itself': lambda: distiller(
                'Distiller',
                student=classifier(),
                teacher=None,
                terms=dict(loss_hint=dict(HINT, teacher='student')),
                probe_size=64,
            ),
        }[kind]()
        message = r'^TeacherCacheHook: expected a distiller whose frozen teachers see .*, found \w*Distiller'
    with pytest.raises(ValueError, match=message):
        model.open_caches(tmp_path, 'float16', MANY)
    assert not any(tmp_path.iterdir())


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_without_lmdb_only_a_cache_is_missed(tmp_path):
    """As where somebody put the environment together by hand."""
    code = (
        'import sys; sys.modules["lmdb"] = None; import mmsokd; from mmsokd.distillers.cache import TeacherCache;'
        f'TeacherCache("teacher", {str(tmp_path)!r}, dict(), [], "float16", 1, "")'
    )
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert 'ImportError: teacher: expected the package lmdb' in run.stderr


def test_a_folder_that_this_process_has_open_is_told(tmp_path):
    message = r'^teacher: expected an empty folder, .* cannot be opened: .* already open in this process.*; give'
    with cached(built(), tmp_path), pytest.raises(ValueError, match=message):
        built().open_caches(tmp_path, 'float32', MANY)


@pytest.mark.parametrize('harm', ['text', 'cut', 'emptied', 'without a picture'])
def test_a_damaged_file_is_told(tmp_path, harm):
    model = built()
    with cached(model, tmp_path, capacity=MANY if harm != 'without a picture' else 1), suppress(ValueError):
        losses_of(model, raw_cls_batch(8))
    file = tmp_path / 'teacher' / 'data.mdb'
    whole = file.read_bytes()
    parts = dict(text=b'x' * len(whole), cut=whole[: len(whole) // 2], emptied=whole[:100])
    file.write_bytes(parts.get(harm, whole[:8192]))
    with pytest.raises(ValueError, match=r"^teacher: expected an empty folder, .* found that '.*' cannot be opened: "):
        model.open_caches(tmp_path, 'float32', MANY)


def test_a_row_of_another_length_is_told(tmp_path):
    model = built()
    with cached(model, tmp_path) as cache:
        losses_of(model, raw_cls_batch(2))
        with cache._env.begin(write=True) as txn:
            keys = [key for key, _ in txn.cursor() if key != b'manifest']
            txn.put(keys[0], b'short')
        with pytest.raises(ValueError, match=r'^teacher: expected \d+ bytes a picture, found 5 in .* which is damaged'):
            losses_of(model, raw_cls_batch(2))


def test_a_disk_that_gets_full_ends_the_writing_and_not_the_training(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr('mmsokd.distillers.cache.print_log', lambda text, *_: told.append(text))
    plain, ours = built(), built()
    with cached(ours, tmp_path) as cache, counted(ours) as counts:
        for model in (ours, plain):
            losses_of(model, raw_cls_batch(4))
        cache._env.set_mapsize(1)  # no page more
        for _ in range(2):
            batches = (raw_cls_batch(64, seed=1) for _ in range(2))
            found = [losses_of(model, batch) for model, batch in zip((ours, plain), batches, strict=True)]
            assert_losses_close(*found, 1e-5)
        losses_of(ours, raw_cls_batch(4))
        assert counts == [4, 64, 64]
        assert len(cache) == 4
    assert ['no longer written' in text for text in told] == [False, True]  # once, after what it takes
    with cached(ours, tmp_path) as cache, counted(ours) as counts:  # and what is there is whole
        losses_of(ours, raw_cls_batch(4))
    assert counts == []


BATCHES = 40


def write_until_killed(folder, started):
    model = built()
    model.open_caches(folder, 'float32', MANY)
    started.set()
    for seed in range(BATCHES):
        losses_of(model, raw_cls_batch(4, size=32, seed=seed))
    time.sleep(300)


def test_a_killed_training_leaves_whole_batches(tmp_path):
    context = multiprocessing.get_context('forkserver')
    started = context.Event()
    process = context.Process(target=write_until_killed, args=(tmp_path, started))
    process.start()
    assert started.wait(120)
    file = tmp_path / 'teacher' / 'data.mdb'
    size = file.stat().st_size
    while file.stat().st_size < size + 3 * 2**14:
        time.sleep(0.001)
    process.kill()
    process.join()
    plain, ours = built(), built()
    with cached(ours, tmp_path) as cache, counted(ours) as counts:
        kept = len(cache)
        assert 0 < kept < 4 * BATCHES
        assert kept % 4 == 0
        for seed in range(BATCHES):
            batches = (raw_cls_batch(4, size=32, seed=seed) for _ in range(2))
            found = [losses_of(model, batch) for model, batch in zip((ours, plain), batches, strict=True)]
            assert_losses_close(*found, 1e-6)
        assert counts == [4] * (BATCHES - kept // 4)


# ---- several processes ----------------------------------------------------------------------------------------------


def on_a_rank(rank, folder):
    """The ranks see each other's pictures in the second epoch."""
    plain, ours = built(), built()
    with cached(ours, folder / 'cache', capacity=16) as cache, counted(ours) as counts:
        for epoch in range(2):
            for i in range(2):
                seed = 2 * i + (rank + epoch) % 2
                batches = (raw_cls_batch(4, seed=seed) for _ in range(2))
                found = [losses_of(model, batch) for model, batch in zip((ours, plain), batches, strict=True)]
                assert_losses_close(*found, 1e-6)
            torch.distributed.barrier()
        assert counts == [4, 4]
        assert len(cache) == 16
        assert_same(torch.tensor(len(cache)))


@pytest.mark.slow
def test_two_ranks_share_one(tmp_path):
    on_two_ranks(on_a_rank, tmp_path)


# ---- keys -----------------------------------------------------------------------------------------------------------


def plain_sums(picture):
    """The same hash of a float32 picture in Python's whole numbers."""
    import struct

    import numpy as np

    words = [struct.unpack('<i', struct.pack('<f', value))[0] for value in picture.flatten().tolist()]
    factors = np.random.PCG64(0).random_raw(2 * len(words)).tolist()
    rows = factors[: len(words)], factors[len(words) :]
    return b''.join((sum(w * f for w, f in zip(words, row, strict=True)) % 2**64).to_bytes(8, 'little') for row in rows)


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_a_key_is_the_multilinear_hash(seed, n, height, width):
    pictures = torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))
    keys = fingerprints(pictures)
    assert [key[:16] for key in keys] == [plain_sums(picture) for picture in pictures]
    assert keys == fingerprints(pictures.contiguous(memory_format=torch.channels_last))
    assert keys == [fingerprints(picture[None])[0] for picture in pictures]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_keys_of_whole_numbers_differ(dtype):
    """What a preprocessor without normalization gives: low bits that are all zero."""
    pictures = torch.randint(0, 256, (4096, 3, 4, 4)).to(dtype)
    pictures[1::2] = pictures[::2]
    pictures[1::2, 0, 0, 0] = (pictures[::2, 0, 0, 0].int() ^ 1).to(dtype)
    assert len(set(fingerprints(pictures))) == len(pictures)


def test_the_size_that_a_sample_tells_is_in_the_key():
    pictures = torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    samples = [BaseDataElement(metainfo=dict(img_shape=shape)) for shape in ((8, 8), (8, 6), (8, 6, 3))]
    whole, part, again = fingerprints(pictures, samples)
    assert whole == fingerprints(pictures)[0]
    assert whole != part == again


@pytest.mark.cuda
def test_on_a_gpu_keys_and_losses_are_the_same(tmp_path):
    pictures = torch.randn(4, 3, 32, 32)
    assert fingerprints(pictures) == fingerprints(pictures.cuda())
    plain, ours = built(pace=dict(stream=True)).cuda(), built(pace=dict(stream=True)).cuda()
    with cached(ours, tmp_path), counted(ours) as counts:
        for _ in range(3):
            assert_losses_close(*(losses_of(model, raw_cls_batch(4)) for model in (ours, plain)), 1e-4)
    assert counts == [4]
