"""500 damaged checkpoints: each is told in one message, or gives a model of the same keys and shapes.

They are read one after the other in a process of its own, with an alarm for each and little memory.
"""

import io
import json
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from mmsokd.distillers.build import load_weights
from tests.builders_checkpoint import Toy

ROOT = Path(__file__).resolve().parents[1]
COUNT = 500
ROOM = 256 * 2**20  # bytes beside what the process has when it begins
SECONDS = 5  # for one file


def toy_checkpoint():
    torch.manual_seed(0)
    meta = dict(epoch=1, time='20200101', seed=0, dataset_meta=dict(classes=('a', 'b')))
    optimizer = dict(state={0: dict(step=torch.tensor(1.0), exp_avg=torch.ones(4, 3))}, param_groups=[dict(lr=0.1)])
    return dict(meta=meta, state_dict=Toy().state_dict(), optimizer=optimizer)


def saved(checkpoint, old=False):
    file = io.BytesIO()
    torch.save(checkpoint, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def truncated(rng, good):
    return good[: rng.randrange(len(good))]


def flipped(rng, good):
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwritten(rng, good):
    """A block of zeros, of ones or of noise; or one that is cut out, or comes twice."""
    start = rng.randrange(len(good))
    end = start + rng.randrange(1, 300)
    block = rng.choice((b'\0' * (end - start), b'\xff' * (end - start), rng.randbytes(end - start), b'', None))
    return good[:start] + (good[start:end] * 2 if block is None else block) + good[end:]


def other_type(rng, _):
    """What is no state dict, or holds something else than tensors."""
    state = Toy().state_dict()
    name = rng.choice(list(state))
    odd = rng.choice((None, 3, 'text', [1, 2], {}, (state[name],), b'bytes', True, 1e300, {1, 2}))
    whole = (odd, [state], dict(state_dict=odd), dict(state_dict=list(state.items())), {0: state[name]})
    return saved(rng.choice((*whole, dict(state_dict={**state, name: odd}), {**state, name: odd})), rng.random() < 0.3)


def other_shape(rng, _):
    state = Toy().state_dict()
    name = rng.choice(list(state))
    value = state[name]
    others = (
        value[:1] if value.ndim else value[None],
        value.flatten(),
        value[None],
        value.new_zeros(0),
        value.repeat(2, *[1] * 9),
    )
    state[name] = rng.choice([other for other in others if other.shape != value.shape])
    return saved(dict(state_dict=state), rng.random() < 0.3)


def other_keys(rng, _):
    """Some are missing, some too many, some no text."""
    state = toy_checkpoint()['state_dict']
    for name in rng.sample(list(state), rng.randrange(1, 3)):
        value = state.pop(name)
        state[rng.choice((f'module.{name}', f'student.{name}', name.upper(), '', 7, ('a', 1), None))] = value
    return saved(rng.choice((state, dict(state_dict=state))), rng.random() < 0.3)


def huge_zip_header(rng, _):
    """Sizes, offsets and counts of the zip's directory."""
    data = bytearray(saved(toy_checkpoint()))
    big = rng.choice((0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 2**30))
    signature, fields = rng.choice(
        ((b'PK\x01\x02', (20, 24, 42)), (b'PK\x03\x04', (18, 22)), (b'PK\x05\x06', (12, 16)), (b'PK\x06\x06', (40, 48)))
    )
    places = [i for i in range(len(data)) if data[i : i + 4] == signature]
    if not places:
        return bytes(data[:-8]) + struct.pack('<Q', big)
    place = rng.choice(places)
    for field in rng.sample(fields, rng.randrange(1, len(fields) + 1)):
        data[place + field : place + field + 4] = struct.pack('<I', big)
    return bytes(data)


def huge_pickle(rng, _):
    """A number, or the length of a text, in the pickle: sizes, strides, offsets, numbers of elements."""
    old = rng.random() < 0.5
    data = saved(toy_checkpoint(), old)
    big = rng.choice((2**31 - 1, 2**40, 2**62, -1, 2**63 - 1))

    def damaged(content):
        content = bytearray(content)
        places = [i for i in range(len(content) - 1) if content[i] == pickle.BININT1[0]]
        texts = [i for i in range(len(content) - 5) if content[i] == pickle.BINUNICODE[0] and content[i + 3] == 0]
        if rng.random() < 0.2:
            place = rng.choice(texts)
            content[place + 1 : place + 5] = b'\xff\xff\xff' + bytes([rng.choice((0x7F, 0xFF, 0x10))])
        else:
            place = rng.choice(places)
            number = pickle.LONG1 + b'\x08' + struct.pack('<q', big)
            content[place : place + 2] = number
        return bytes(content)

    if old:
        return damaged(data)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, 'w') as new:
        for record in source.infolist():
            content = source.read(record)
            new.writestr(record.filename, damaged(content) if record.filename.endswith('data.pkl') else content)
    return target.getvalue()


def compressed(rng, _):
    """A zip whose parts unpack to far more than they are."""
    target = io.BytesIO()
    size = rng.choice((2**20, 2**28))
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as new:
        content = pickle.dumps({}, 2) if rng.random() < 0.5 else None
        new.writestr('a/data.pkl', content or bytes(min(size, 2**24)))
        with new.open('a/data/0', 'w') as part:
            for _ in range(size // 2**20 if content is None else 1):
                part.write(bytes(2**20))
    return target.getvalue()


def copying(rng, _):
    """A pickle that asks for one long text as bytes, or one mapping, again and again; for lists of lists of lists; or
    for what names something by tuples of tuples, whose text would be endless."""
    text = 'x' * 50_000
    head = b'\x80\x02]q\x00(X' + struct.pack('<I', len(text)) + text.encode() + b'q\x01c_codecs\nencode\nq\x02'
    again = b'h\x02h\x01X\x06\x00\x00\x00latin1\x86R' * 20_000
    nested = b'\x80\x02N' + b'\x86'.join([b'q\x00h\x00'] * 200) + b'\x86.'
    bomb = b'N' + b'2\x86' * 40
    named = (
        b'\x80\x02cnumpy\ndtype\n' + bomb + b'\x85R.',
        b'\x80\x02c__builtin__\ngetattr\n' + bomb + b'N\x86R.',
        b'\x80\x02(' + bomb + b'NNNNtQ.',
    )
    counts = b''.join(b'J' + struct.pack('<i', i) + b'K\x01' for i in range(20_000))
    mappings = b'\x80\x02](ccollections\nCounter\n}(' + counts + b'u\x85Rq\x00'
    mappings += b'ccollections\nOrderedDict\nh\x00\x85R' * 200 + b'e.'
    target = io.BytesIO()
    with zipfile.ZipFile(target, 'w') as new:
        deep = b'\x80\x02' + b']' * 10**5 + b'.'
        new.writestr('a/data.pkl', (head + again + b'e.', nested, deep, mappings, *named)[rng.randrange(7)])
    return target.getvalue()


def noise(rng, _):
    head = rng.choice(
        (b'', b'PK\x03\x04', b'PK\x05\x06', b'\x80\x02', b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', b'GIF8')
    )
    return head + rng.randbytes(rng.randrange(0, 400))


KINDS = {  # how often
    truncated: 90,
    flipped: 120,
    overwritten: 60,
    other_type: 50,
    other_shape: 30,
    other_keys: 40,
    huge_zip_header: 40,
    huge_pickle: 40,
    noise: 13,
    compressed: 3,
    copying: 14,
}


# What may pass: bits that nobody reads, such as a zip's second sizes, and numbers of `meta`; a prefix that DDP writes.
HARMLESS = {'flipped', 'overwritten', 'huge_zip_header', 'huge_pickle', 'other_keys'}


def damaged_files(folder):
    """(kind, path) of each, from one seed."""
    rng = random.Random(0)
    goods = [saved(toy_checkpoint()), saved(toy_checkpoint(), old=True)]
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    assert len(kinds) == COUNT
    for i, kind in enumerate(kinds):
        path = folder / f'{i:03}-{kind.__name__}.pth'
        path.write_bytes(kind(rng, goods[i % 2]))
        yield kind.__name__, path


def read_all(folder):
    """In the process with little memory: the outcome of each file, as JSON."""
    warnings.simplefilter('ignore')
    model = Toy()
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt('too slow')))
    outcomes = {}
    for path in sorted(Path(folder).glob('*.pth')):
        signal.alarm(SECONDS)
        try:
            load_weights('teacher.checkpoint', model, path)
            outcome = 'loaded'
        except ValueError as error:
            outcome = f'ValueError: {error}'
        except BaseException as error:  # found below, with the name of its file
            outcome = f'{type(error).__name__}: {error}'
        signal.alarm(0)
        outcomes[path.name] = outcome
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    print(json.dumps(dict(outcomes=outcomes, peak=peak, shapes=shapes)))


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    kinds = {path.name: kind for kind, path in damaged_files(folder)}
    begin = time.monotonic()
    code = f'from tests.test_checkpoint_fuzz import read_all; read_all({str(folder)!r})'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f'{COUNT} files in {time.monotonic() - begin:.1f} s, peak {found["peak"] / 1024:.0f} MiB')
    return dict(found, folder=folder, kinds=kinds)


def test_each_is_told_or_loaded(report):
    outcomes = report['outcomes']
    assert len(outcomes) == COUNT
    for name, outcome in outcomes.items():
        if outcome != 'loaded':
            assert outcome.startswith('ValueError: teacher.checkpoint: expected '), (name, outcome)
            assert name in outcome, (name, outcome)
            assert len(outcome) < 700, (name, outcome)
    counts = Counter((report['kinds'][name], outcome == 'loaded') for name, outcome in outcomes.items())
    print({f'{kind}, {"loaded" if loaded else "told"}': n for (kind, loaded), n in sorted(counts.items())})
    assert {kind for kind, loaded in counts if loaded} <= HARMLESS
    assert sum(n for (_, loaded), n in counts.items() if not loaded) > 400


def test_what_was_loaded_is_whole(report):
    """By the zip's checksums no flipped weight passes; the legacy format has none."""
    expected = {name: list(value.shape) for name, value in Toy().state_dict().items()}
    assert report['shapes'] == expected
    good = toy_checkpoint()['state_dict']
    for name in [name for name, outcome in report['outcomes'].items() if outcome == 'loaded']:
        path = report['folder'] / name
        if path.read_bytes()[:2] == b'PK':
            model = Toy()
            load_weights('checkpoint', model, path)
            for key, value in model.state_dict().items():
                torch.testing.assert_close(value, good[key], rtol=0, atol=0, msg=f'{name}: {key}')


def test_good_files_are_loaded(tmp_path):
    for old in (False, True):
        path = tmp_path / 'good.pth'
        path.write_bytes(saved(toy_checkpoint(), old))
        model = Toy(4)
        load_weights('checkpoint', model, path)
        for key, value in toy_checkpoint()['state_dict'].items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
