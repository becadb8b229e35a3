"""What is in a checkpoint is not run; what OpenMMLab's checkpoints hold is read as torch.load reads it."""

import builtins
import bz2
import copyreg
import functools
import gzip
import importlib
import io
import itertools
import os
import pickle
import runpy
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import nullcontext
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path, PosixPath, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from mmsokd import checkpoint as safe
from mmsokd.checkpoint import guard_mmengine, load_checkpoint
from mmsokd.distillers.build import load_weights
from mmsokd.hooks import StudentCheckpointHook, student_checkpoint
from tests.builders_checkpoint import Toy, legacy, runner, with_pickle

TOOLS = Path(__file__).resolve().parents[1] / 'tools'


class Call:
    """Pickled as the call of ``function``, so that reading it calls it."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __call__(self):
        """Pickle wants it to be callable."""

    def __reduce__(self):
        return self.function, self.args


class Touching(OrderedDict):
    """A mapping whose state touches a file when it is read."""

    def __reduce__(self):
        return Touching, (), {'marker': self.marker}

    def __setstate__(self, state):
        open(state['marker'], 'w').close()


class WithState(SimpleNamespace):
    """Likewise an object."""

    def __setstate__(self, state):
        open(state['marker'], 'w').close()


def touching(marker):
    mapping = Touching()
    mapping.marker = str(marker)
    return mapping


def chain(marker):
    """From a listed class to its module's globals, to the builtins, to eval."""
    scope = Call(getattr, HistoryBuffer.update, '__globals__')
    scope = Call(Call(getattr, scope, 'get'), '__builtins__')
    evaluate = Call(Call(getattr, scope, 'get'), 'eval')
    return Call(evaluate, f'open({str(marker)!r}, "w").close()')


def object_array(marker):
    array = np.empty(1, dtype=object)
    array[0] = Call(os.system, f'touch {marker}')
    return array


def pickle_in_a_file(marker):
    path = marker.with_name('inner.pkl')
    path.write_bytes(pickle.dumps(Call(os.system, f'touch {marker}')))
    return Call(np.load, str(path), None, True)


PAYLOADS = {  # name -> (what is pickled, given the file it would touch; what the message says it asked for)
    'system': (lambda m: Call(os.system, f'touch {m}'), 'posix.system'),
    'subprocess': (lambda m: Call(subprocess.call, ['touch', str(m)]), 'subprocess.call'),
    'eval': (lambda m: Call(eval, f'open({str(m)!r}, "w").close()'), 'builtins.eval'),
    'exec': (lambda m: Call(exec, f'open({str(m)!r}, "w").close()'), 'builtins.exec'),
    'import': (
        lambda m: Call(Call(getattr, Call(builtins.__import__, 'os'), 'system'), f'touch {m}'),
        'builtins.__import__',
    ),
    'open': (lambda m: Call(open, str(m), 'w'), 'io.open'),
    'beside tensors': (
        lambda m: dict(state_dict={'a': torch.ones(2), 'b': Call(os.system, f'touch {m}')}),
        'posix.system',
    ),
    'in meta': (lambda m: dict(state_dict={}, meta=dict(hook=[(Call(os.system, f'touch {m}'),)])), 'posix.system'),
    'mapping': (touching, 'tests.test_checkpoint_safety.Touching'),
    'state': (lambda m: WithState(marker=str(m)), 'tests.test_checkpoint_safety.WithState'),
    'getattr chain': (chain, 'builtins.getattr(mmengine.logging.history_buffer.HistoryBuffer.update)'),
    'pickle in a pickle': (
        lambda m: Call(pickle.loads, pickle.dumps(Call(os.system, f'touch {m}'))),
        'pickle.loads',
    ),
    'pickle in a file': (pickle_in_a_file, 'numpy.load'),
    'object array': (object_array, "numpy.dtype('O8')"),
    'partial': (lambda m: Call(functools.partial(os.system, f'touch {m}')), 'functools.partial'),
    'map': (lambda m: Call(set, Call(map, os.system, [f'touch {m}'])), 'builtins.map'),
    'rebuild': (
        lambda m: Call(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (f'touch {m}',), {}),
        'torch._tensor._rebuild_from_type_v2',
    ),
}
FORMATS = {
    'zip': lambda payload, path: torch.save(payload, path),
    'zip, protocol 4': lambda payload, path: torch.save(payload, path, pickle_protocol=4),
    'legacy': lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False),
}


@pytest.fixture
def good(tmp_path):
    path = tmp_path / 'good.pth'
    torch.save(dict(state_dict=Toy().state_dict()), path)
    return path


@pytest.fixture
def unguarded(monkeypatch):
    """MMEngine's loaders as they were, after the test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    monkeypatch.setattr(safe, '_trust_all', False)


def refuse(path, *words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are looked at below)
        load_checkpoint(path)
    for word in (str(path), *words):
        assert word in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('kind', PAYLOADS)
@pytest.mark.parametrize('form', FORMATS)
def test_payload_is_not_run(tmp_path, kind, form):
    marker, path = tmp_path / 'marker', tmp_path / 'evil.pth'
    build, name = PAYLOADS[kind]
    FORMATS[form](build(marker), path)
    message = refuse(path, 'trust_checkpoint=True', '--trust-checkpoint')
    assert not marker.exists()
    assert name in message or 'protocol 4' in form  # which spells a method without getattr
    try:  # the payload is a payload: with trust it runs
        load_checkpoint(path, trust=True)
    except ValueError:
        pass
    assert marker.exists()


def test_a_followed_checkpoint_is_not_run(tmp_path, monkeypatch):
    """A resumed run's best checkpoint is whatever file its last one names."""
    marker, path, told = tmp_path / 'marker', tmp_path / 'best_acc_epoch_1.pth', []
    torch.save(PAYLOADS['system'][0](marker), path)
    monkeypatch.setattr(student_checkpoint, 'print_log', lambda message, *_: told.append(message))
    hook = StudentCheckpointHook(prefix='student_')
    hook.part = 'student'
    hook._follow(path)
    assert not marker.exists()
    assert not (tmp_path / 'student_best_acc_epoch_1.pth').exists()
    (message,) = told
    assert message.startswith('student_best_acc_epoch_1.pth is not written: ')
    assert 'posix.system' in message


@pytest.mark.parametrize('squeeze', [bz2.compress, gzip.compress])
def test_a_small_file_takes_no_large_memory(tmp_path, squeeze):
    """As Python's tarfile would, to see whether it is one."""
    header = tarfile.TarInfo('a')
    header.size, header.type = 2**26, tarfile.XHDTYPE
    (tmp_path / 'small.pth').write_bytes(squeeze(header.tobuf() + bytes(header.size)))
    assert (tmp_path / 'small.pth').stat().st_size < 10**5
    tracemalloc.start()
    refuse(tmp_path / 'small.pth')
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_small_file_takes_no_long_time(tmp_path):
    """The keys of the storages are hashed: a tuple of two that is nested n times, in 2^n steps."""
    key = ()
    for _ in range(60):
        key = key, key
    path = legacy(pickle.dumps({}, 2), tmp_path / 'small.pth')
    path.write_bytes(path.read_bytes().removesuffix(pickle.dumps([], 2)) + pickle.dumps([key], 2))
    refuse(path, 'storages and their list differ')
    large = {i * (2**61 - 1): 0 for i in range(1, 9)}  # of one hash
    torch.save(large, tmp_path / 'large.pth')
    refuse(tmp_path / 'large.pth', 'a key of more than 60 bits')
    torch.save({complex(-1000003 * i, i): 0 for i in range(8)}, tmp_path / 'complex.pth')  # of hash 0
    refuse(tmp_path / 'complex.pth', 'a key of type complex')
    pairs = list(itertools.product((-1, -2), repeat=10))  # of one hash, since -1 has that of -2
    moments = [datetime(2020, 1, 1, tzinfo=timezone.utc) + timedelta(i) for i in range(1001)]
    for many in (pairs, moments):
        for kind in (dict.fromkeys, set, frozenset, OrderedDict.fromkeys):
            torch.save(kind(many), tmp_path / 'tuples.pth')
            refuse(tmp_path / 'tuples.pth', 'more than 1000 keys, with tuples among them')
    torch.save({tuple(range(33)): 0}, tmp_path / 'long.pth')  # is hashed as often as it is named
    refuse(tmp_path / 'long.pth', 'a key of more than 32 parts')
    torch.save({np.longdouble(2): 0}, tmp_path / 'wide.pth')  # many have the hash of one of 64 bits
    refuse(tmp_path / 'wide.pth', 'a key of type longdouble')
    torch.save(dict.fromkeys(pairs[:1000]), tmp_path / 'few.pth')
    assert len(load_checkpoint(tmp_path / 'few.pth')) == 1000


def test_large_names_of_storages_are_refused(tmp_path):
    """In the format before PyTorch 1.6 they are a file's own."""
    pid = b'(' + text('storage') + b'ctorch\nFloatStorage\n' + integer(2**61 - 1) + text('cpu') + b'K\x00NtQ.'
    refuse(legacy(b'\x80\x02' + pid, tmp_path / 'name.pth'), 'a key of more than 60 bits')


def text(what):
    return b'\x8c' + bytes([len(what)]) + what.encode()


def integer(value):
    """Of up to 255 bytes."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
    return b'\x8a' + bytes([len(raw)]) + raw


def named(module, name, *args):
    """A whole pickle that calls it; without ``args``, a part that names it."""
    name = f'c{module}\n{name}\n'.encode()
    return b'\x80\x04' + name + b'(' + b''.join(args) + b'tR.' if args else name


RAW = {  # pickles that no pickler writes
    'INST': (b"(S'touch {marker}'\nios\nsystem\n.", 'unknown'),
    'OBJ': (b'(cos\nsystem\nX\x0c\x00\x00\x00touch marker' + b'o.', 'os.system'),
    'callable from the memo': (
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x000h\x00(}K\x00))tR.',
        'a tensor without',
    ),
    'call of a class': (b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n)R.', 'HistoryBuffer'),
    'call of a result': (b'\x80\x02ccollections\nOrderedDict\n)R)R.', 'OrderedDict'),
    'new of another class': (b'\x80\x02cnumpy\nndarray\nK\x01\x85\x81.', 'ndarray'),
    'attribute of a class': (
        b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\nN}X\x04\x00\x00\x00meanN\x73\x86b.',
        'type.__setstate__',
    ),
    'attribute of an OrderedDict': (
        b'\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00items' + b'N\x73b.',
        'OrderedDict.__setstate__',
    ),
    'attribute of a function': (b'\x80\x02c_codecs\nencode\n}b.', '__setstate__'),
    'state of a dict': (b'\x80\x02}}b.', 'dict.__setstate__'),
    'append to a dict': (b'\x80\x02}K\x01a.', 'items of a dict'),
    'item of a list': (b'\x80\x02]K\x00K\x01s.', 'keys of a list'),
    'key of tuples of tuples': (b'\x80\x02}N\x85\x85N' + b's.', 'a key of type tuple'),
    'object dtype': (b'\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R.', "numpy.dtype('O8')"),
    'module beside tensors': (b'\x80\x02(X\x06\x00\x00\x00modulecos\nsystem\nNNNtQ.', 'os.system'),
    'dotted name': (b'\x80\x04\x8c\x02os\x8c\x0bpath.sys.os\x93.', 'os.path.sys.os'),
    'extension': (b'\x80\x02\x82\xf0.', 'unknown'),
    'factory that calls': (named('collections', 'defaultdict', named('os', 'system')), 'os.system'),
    'factory of another kind': (
        named('collections', 'defaultdict', named('torch._utils', '_rebuild_parameter')),
        'a defaultdict of',
    ),
    'bytearray of a number': (named('builtins', 'bytearray', integer(2**40)), 'bytearray without text'),
    'bytearray that claims more': (b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'x.', 'bytes claimed'),
    'range of large numbers': (
        named('builtins', 'range', integer(0), integer(2**70), integer(3)),
        'a range without integers',
    ),
    'slice of a list': (named('builtins', 'slice', b']'), 'a slice without integers'),
    'size of text': (named('torch', 'Size', text('ab')), 'a torch.Size without'),
    'huge size': (named('torch', 'Size', integer(2**60) + b'\x85'), 'a torch.Size without'),
    'device of a number': (named('torch', 'device', integer(0)), 'a device without'),
    'complex of text': (named('builtins', 'complex', text('1'), text('1')), 'a complex number without'),
    'deque of a list': (named('collections', 'deque', b']'), 'a deque of'),
    'path of a list': (named('pathlib', 'PosixPath', b']'), 'a path without'),
    'path of another kind': (named('pathlib', 'Path', text('a')), 'pathlib.Path'),
    'method of a path': (
        b'\x80\x04' + text('pathlib') + text('PosixPath.unlink') + b'\x93.',
        'pathlib.PosixPath.unlink',
    ),
    'day that there is not': (named('datetime', 'date', b'C\x04\x07\xe4\x02\x1e'), 'day'),
    'moment of a number': (named('datetime', 'datetime', integer(1)), 'a datetime without'),
    'timezone of a number': (named('datetime', 'timezone', integer(1)), 'a timezone without'),
    'set of lists': (b'\x80\x04\x8f(]\x90.', 'a key of type list'),
    'frozenset of lists': (b'\x80\x04(]\x91.', 'a key of type list'),
    'items of a dict': (b'\x80\x04}(K\x01\x90.', 'items of a dict'),
    'sets without end': (b'\x80\x04(' + b'\x8f' * 100_000 + b't.', 'many times'),
    'deques without end': (
        b'\x80\x04(' + text('collections') + text('deque') + b'\x93\x94' + b'h\x00)R' * 20_000 + b't.',
        'many times',
    ),
    'arrays of one buffer': (
        b'\x80\x05\x96' + struct.pack('<Q', 5000) + bytes(5000) + b'\x940'  # 0
        b'cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R\x940cnumpy.core.numeric\n_frombuffer\n\x940'  # 1 and 2
         + b'(' + b'h\x02(h\x00h\x01M\x88\x13\x85X\x01\x00\x00\x00CtR' * 1000 + b't.',
        'many times',
    ),
}


@pytest.mark.parametrize('kind', RAW)
def test_raw_pickle_is_not_run(tmp_path, good, kind):
    content, word = RAW[kind]
    copyreg.add_extension('os', 'system', 0xF0)
    before = (HistoryBuffer.mean, HistoryBuffer.__dict__.keys())
    try:
        refuse(with_pickle(good, tmp_path / 'evil.pth', content), word)
        refuse(legacy(content, tmp_path / 'old.pth'), word)
    finally:
        copyreg.remove_extension('os', 'system', 0xF0)
    assert (HistoryBuffer.mean, HistoryBuffer.__dict__.keys()) == before


def test_hooks_and_statistics_are_left_out(tmp_path, monkeypatch):
    """Names that are listed, but where they would be called later."""
    path = tmp_path / 'a.pth'
    storage = torch.ones(2).untyped_storage()
    storage = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    hooks = OrderedDict({0: HistoryBuffer.max})
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), True, hooks)
    methods = HistoryBuffer._statistics_methods
    for load in (functools.partial(torch.load, weights_only=False), load_checkpoint):
        with monkeypatch.context() as patch:
            patch.setitem(methods, 'mean', HistoryBuffer.max)
            torch.save(dict(tensor=tensor, history=HistoryBuffer([1.0], [1])), path)
        with monkeypatch.context() as patch:
            patch.setitem(methods, 'mean', HistoryBuffer.mean)
            loaded = load(path)
            replaced = methods['mean'] is HistoryBuffer.max
        assert (loaded['tensor']._backward_hooks is not None) == (load is not load_checkpoint) == replaced
    assert loaded['tensor'].requires_grad


def test_tar_and_torchscript_are_refused(tmp_path):
    """PyTorch reads both beside its restricted unpickler (CVE-2025-32434)."""
    marker = tmp_path / 'marker'
    path = tmp_path / 'old.tar'
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        for name in ('storages', 'tensors', 'pickle'):
            content = pickle.dumps(Call(os.system, f'touch {marker}'), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    refuse(path, 'tar')
    script = tmp_path / 'script.pth'
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(script))
    refuse(script, 'TorchScript')
    assert not marker.exists()


def test_second_pickle_in_the_zip_is_refused(tmp_path, good):
    marker = tmp_path / 'marker'
    evil = pickle.dumps(Call(os.system, f'touch {marker}'), protocol=2)
    for name in ('other/data.pkl', 'good/data.pkl'):
        path = tmp_path / 'two.pth'
        path.write_bytes(good.read_bytes())
        with zipfile.ZipFile(path, 'a') as archive:
            if name in archive.namelist():
                with pytest.warns(UserWarning, match='Duplicate name'):
                    archive.writestr(name, evil)
            else:
                archive.writestr(name, evil)
        refuse(path, "one 'data.pkl'")
    assert not marker.exists()


def same(one, two, path=''):
    """Equal in values, types, order, dtypes and strides."""
    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.stride(), one.requires_grad) == (two.dtype, two.stride(), two.requires_grad), path
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, dict):
        assert list(one) == list(two), path
        for key in one:
            same(one[key], two[key], f'{path}.{key}')
        assert getattr(one, '_metadata', None) == getattr(two, '_metadata', None), path
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            same(a, b, f'{path}[{i}]')
    elif isinstance(one, HistoryBuffer):
        same(one.data, two.data, path)
        assert one.max_length == two.max_length
        assert one.statistics('mean') == two.statistics('mean')
    elif isinstance(one, np.ndarray):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    else:
        assert one == two, path


HARMLESS = {
    'size': [torch.Size([2, 3]), torch.Size([])],
    'device': [torch.device('cpu'), torch.device('cuda:1'), torch.device('cuda')],
    'dtype': [dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)],
    'deque': [deque(), deque([1, 'a']), deque(range(5), maxlen=3), deque([deque([torch.Size([1])])], maxlen=0)],
    'mappings': [OrderedDict(a=OrderedDict()), Counter(), Counter('aab')],
    'defaultdict': [
        defaultdict(kind, {'a': kind()})
        for kind in (dict, list, tuple, set, int, float, bool, str, OrderedDict, Counter, deque)
    ],
    'defaultdict of nothing': [defaultdict(None, a=1)],
    'complex': [complex(1, -2), complex('inf')],
    'sets': [set(), {1, 'a', (1, 2)}, frozenset(), frozenset([2.5, None]), {torch.float16, torch.device('cpu')}],
    'large set': [set(range(5000)), {f'{i}' for i in range(3000)}, frozenset(range(3000))],
    'paths': [PurePosixPath('/a/b'), PosixPath('a/../b'), PurePosixPath(), {PosixPath('/'): 1}],
    'moments': [
        datetime(2020, 1, 2, 3, 4, 5, 6),
        datetime(2020, 10, 25, 2, fold=1),
        datetime(2020, 1, 2, tzinfo=timezone.utc),
        datetime(2020, 1, 2, tzinfo=timezone(timedelta(hours=-2), 'there')),
        date(2024, 2, 29),
        time(1, 2, 3),
        time(1, tzinfo=timezone.utc),
        timedelta(-1, 2, 3),
    ],
    'slices': [slice(None), slice(1, -2, 3), range(5), range(10, 0, -3), range(2**62)],
    'bytes': [b'', b'a\xff', bytes(300), bytearray(), bytearray(b'a\xff'), bytearray(70_000)],
    'arrays': [np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.zeros((0, 2)), np.array(['ab', 'c'])],
    'numbers': [np.float32(1.5), np.bool_(False), 2**5000, float('inf')],
}


@pytest.mark.parametrize('form', [2, 3, 4, 5, 'legacy'])
@pytest.mark.parametrize('kind', HARMLESS)
def test_harmless_types_are_read(tmp_path, kind, form):
    path, values = tmp_path / 'a.pth', dict(meta=HARMLESS[kind], twice=HARMLESS[kind])
    if form == 'legacy':
        torch.save(values, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(values, path, pickle_protocol=form)
    loaded, expected = load_checkpoint(path), torch.load(path, weights_only=False)
    same(loaded, values)
    assert loaded['meta'] is loaded['twice']
    for one, two in zip(loaded['meta'], expected['meta'], strict=True):
        for name in ('maxlen', 'default_factory', 'tzinfo', 'fold'):
            assert getattr(one, name, None) == getattr(two, name, None)
        if isinstance(one, np.ndarray):
            assert one.flags.writeable


@pytest.mark.parametrize('name', ['pathlib', 'pathlib._local'])
def test_a_path_of_any_python(tmp_path, good, name):
    """Python 3.13 names another module."""
    content = named(name, 'PosixPath', text('/'), text('a'))
    assert load_checkpoint(with_pickle(good, tmp_path / 'a.pth', content)) == PosixPath('/a')


def test_a_storage_of_what_is_no_number(tmp_path, good):
    """Though torch has the dtype."""
    pid = b'(' + text('storage') + b'ctorch\nquint8\n' + text('0') + text('cpu') + b'K\x00tQ.'
    refuse(with_pickle(good, tmp_path / 'a.pth', b'\x80\x04' + pid), 'a storage without numbers')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A work dir with a checkpoint of MMEngine's Runner: EMA, optimizer, schedulers, message hub."""
    folder = tmp_path_factory.mktemp('work')
    run = runner(folder)
    hub = run.message_hub
    hub.update_info('numbers', dict(a=np.float64(0.5), b=np.int64(3), c=np.bool_(True), d=np.str_('x')))
    hub.update_info(
        'arrays', [np.arange(6.0).reshape(2, 3).T, np.zeros(0), np.array(['ab']), np.arange(3, dtype='>i4')]
    )
    hub.update_info('random', (np.random.get_state(), torch.get_rng_state()))
    hub.update_info('plain', (None, True, 2**70, -1.5, 'ü', b'', b'\xff', {1, 2}, Counter(a=2), [[]], {(1, 'a'): 2}))
    hub.update_info('config', dict(a=ConfigDict(b=ConfigDict(c=[1])), d={np.int64(1): 2}))
    hub.update_info('kinds', (torch.float16, defaultdict(list, a=[1])))
    run.train()
    return folder


@pytest.mark.parametrize('old', [False, True])
def test_real_checkpoint_is_read_as_torch_reads_it(trained, tmp_path, old):
    path = trained / 'epoch_2.pth'
    expected = torch.load(path, weights_only=False)
    assert {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers', 'ema_state_dict'} <= set(expected)
    assert isinstance(expected['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    if old:
        path = tmp_path / 'old.pth'
        torch.save(expected, path, _use_new_zipfile_serialization=False)
    same(load_checkpoint(path), expected)


def test_tensors_of_every_kind(tmp_path):
    shared = torch.arange(12.0)
    tensors = dict(
        view=shared[2:8].view(2, 3).t(),
        shared=shared,
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 5),
        parameter=torch.nn.Parameter(torch.ones(2)),
        expanded=torch.ones(1).expand(4),
    )
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.bool):
        tensors[str(dtype)] = torch.ones(3).to(dtype)
    tensors['complex'] = torch.ones(2, dtype=torch.complex64)
    for old in (False, True):
        torch.save(tensors, tmp_path / 'a.pth', _use_new_zipfile_serialization=not old)
        loaded = load_checkpoint(tmp_path / 'a.pth')
        same(loaded, torch.load(tmp_path / 'a.pth', weights_only=False))
        loaded['shared'].zero_()
        assert loaded['view'].abs().sum() == 0  # still one storage
    same(load_checkpoint(tmp_path / 'a.pth', map_location='meta')['complex'].shape, torch.Size([2]))


def test_runner_resumes_under_guard(trained, unguarded):
    """The same model, average, optimizer and history as without."""
    resumed = []
    for guarded in (False, True):
        if guarded:
            guard_mmengine()
        run = runner(trained, resume=True)
        run.train()
        info = MessageHub.get_current_instance().get_info('plain')
        resumed.append([run.model.state_dict(), run.optim_wrapper.state_dict(), run.iter, info])
    assert resumed[0][2] == 4
    same(*resumed)


@pytest.mark.parametrize('trust', [False, True])
def test_runner_does_not_run_the_text_of_a_config(trained, tmp_path, unguarded, trust):
    """Runner.resume runs meta['config'] as Python; that is no pickle's fault."""
    marker, path = tmp_path / 'marker', tmp_path / 'a.pth'
    checkpoint = torch.load(trained / 'epoch_2.pth', weights_only=False)
    checkpoint['meta']['config'] = f'open({str(marker)!r}, "w").close()'
    torch.save(checkpoint, path)
    guard_mmengine(trust)
    runner(trained, resume=True, load_from=str(path)).train()
    assert marker.exists() == trust


def test_guard_covers_what_mmengine_loads(tmp_path, good, unguarded):
    marker, path = tmp_path / 'marker', tmp_path / 'evil.pth'
    torch.save(Call(os.system, f'touch {marker}'), path)
    guard_mmengine()
    same(CheckpointLoader.load_checkpoint(str(good)), torch.load(good, weights_only=False))
    for name in (str(path), 's3://bucket/a.pth', 'mmcls://vgg11'):
        with pytest.raises(ValueError, match='expected'):
            CheckpointLoader.load_checkpoint(name)
    assert not marker.exists()
    guard_mmengine(trust=True)
    CheckpointLoader.load_checkpoint(str(path))
    assert marker.exists()


def test_download_goes_through_the_same_reading(tmp_path, good, monkeypatch, unguarded):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    fetched = []

    def fetch(url, target, **_):
        fetched.append(url)
        torch.save(Call(os.system, f'touch {tmp_path / "marker"}'), target)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    guard_mmengine()
    for name in ('https://example.org/a/evil.pth?x=1', 'torchvision://resnet18'):
        with pytest.raises(ValueError, match=r'posix\.system'):
            CheckpointLoader.load_checkpoint(name)
    assert fetched[0].endswith('evil.pth?x=1')
    assert 'resnet18' in fetched[1]
    (tmp_path / 'hub' / 'checkpoints' / 'evil.pth').write_bytes(good.read_bytes())  # what is there is not fetched again
    assert load_checkpoint('https://example.org/a/evil.pth?x=1')['state_dict']
    assert len(fetched) == 2
    with pytest.raises(FileNotFoundError, match='resnet19'):
        load_checkpoint('torchvision://resnet19')


@pytest.mark.parametrize('trust', [False, True])
def test_tools_take_the_flag(tmp_path, monkeypatch, unguarded, trust):
    """export_student.py whole, and what train.py and test.py share."""
    marker, path, out = tmp_path / 'marker', tmp_path / 'evil.pth', tmp_path / 'out.pth'
    torch.save(dict(state_dict={'student.a': torch.ones(1)}, more=Call(os.system, f'touch {marker}')), path)
    flag = ['--trust-checkpoint'] if trust else []
    monkeypatch.setattr(sys, 'argv', ['export_student.py', str(path), str(out), *flag])
    with nullcontext() if trust else pytest.raises(ValueError, match=r'posix\.system.*--trust-checkpoint'):
        runpy.run_path(str(TOOLS / 'export_student.py'), run_name='__main__')
    assert marker.exists() == out.exists() == trust
    marker.unlink(missing_ok=True)
    monkeypatch.syspath_prepend(str(TOOLS))
    cli = importlib.import_module('_cli')
    (tmp_path / 'cfg.py').write_text('model = dict()')
    cli.load_config(cli.make_parser('').parse_args([str(tmp_path / 'cfg.py'), *flag]))
    with nullcontext() if trust else pytest.raises(ValueError, match=r'posix\.system'):
        CheckpointLoader.load_checkpoint(str(path))
    assert marker.exists() == trust


def test_load_weights_names_its_key(tmp_path):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict=dict(a=Call(os.system, 'true'))), path)
    with pytest.raises(ValueError, match=r'^teacher\.checkpoint: .*evil\.pth.*posix\.system.*trust_checkpoint=True'):
        load_weights('teacher.checkpoint', Toy(), path)
    with pytest.raises(ValueError, match=r'0 of \d+ keys'):  # trusted: run, and found to be no weights
        load_weights('teacher.checkpoint', Toy(), path, trust=True)
    with pytest.raises(FileNotFoundError, match=r'^teacher\.checkpoint: .*found no file'):
        load_weights('teacher.checkpoint', Toy(), tmp_path / 'gone.pth')


def test_teacher_takes_trust_checkpoint(tmp_path):
    from mmsokd.distillers.teacher import Teacher

    path, evil = tmp_path / 'a.pth', tmp_path / 'evil.pth'
    torch.save(Toy().state_dict(), path)
    torch.save(dict(Toy().state_dict(), more=Call(os.system, f'touch {tmp_path / "marker"}')), evil)
    source = dict(cfg=dict(type='CheckpointToy'))
    Teacher('teacher', dict(source, checkpoint=str(path)))
    with pytest.raises(ValueError, match=r'posix\.system'):
        Teacher('teacher', dict(source, checkpoint=str(evil)))
    assert not (tmp_path / 'marker').exists()
    Teacher('teacher', dict(source, checkpoint=str(evil), trust_checkpoint=True))
    assert (tmp_path / 'marker').exists()
    with pytest.raises(ValueError, match=r'teacher\.trust_checkpoint: expected True or False'):
        Teacher('teacher', dict(source, checkpoint=str(path), trust_checkpoint='yes'))
