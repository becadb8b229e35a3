"""Checkpoints: read without running anything that is in them, and written whole or not at all."""

import io
import mmap
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_torchvision_models

from mmsokd.unpickle import RefusedPickle, SafeUnpickler, Storage, check_keys

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of PyTorch's files before 1.6
_trust_all = False


def load_checkpoint(
    filename: str | os.PathLike, map_location: str | torch.device | None = 'cpu', trust: bool = False
) -> Any:
    """What ``torch.save`` wrote into ``filename`` (path or URL), if it is weights and plain data.

    Nothing that the file names is imported or called (:mod:`mmsokd.unpickle`), every part of a zip file is held to its
    checksum, and no memory is reserved for more bytes than the file has.

    Args:
        filename: a path, an URL, or a name of MMEngine's zoos (``torchvision://``, ``open-mmlab://``).
        map_location: the device of the tensors; None is the CPU.
        trust: read it by pickle, which runs whatever the file says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is no checkpoint, or holds something else than weights and plain data.
    """
    filename = str(filename)
    path = _local(filename)
    trust = trust or _trust_all
    if not trust and (callable(map_location) or isinstance(map_location, dict)):
        raise TypeError(f'map_location: expected a device, found {type(map_location).__name__}')
    try:
        if trust:
            return torch.load(path, map_location=map_location, weights_only=False)
        return _read(path, torch.device(map_location or 'cpu'))
    except RefusedPickle as error:
        raise ValueError(
            f'expected weights and plain data, found that {filename!r} asks for {str(error)[:200]!r}, which may run '
            'code; nothing of it was run. Only if you trust whoever made this file: trust_checkpoint=True beside '
            "'checkpoint' in the config, or --trust-checkpoint"
        ) from None
    except Exception as error:  # a damaged file may lead to any
        raise ValueError(
            f'expected a checkpoint, found that {filename!r} cannot be read (truncated or damaged?): '
            f'{type(error).__name__}: {str(error)[:200]}'
        ) from error


def guard_mmengine(trust: bool = False) -> None:
    """From now on, MMEngine reads checkpoints by :func:`load_checkpoint`: ``load_from``, ``resume``, ``init_cfg``.

    Args:
        trust: every checkpoint, to the end of the process.
    """
    global _trust_all
    _trust_all = _trust_all or trust
    prefixes = ['', 'http://', 'https://', 'modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://']
    unsafe = ['mmcls://', 'pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://']  # refused, but for trust
    if not _trust_all:
        CheckpointLoader.register_scheme(prefixes + unsafe, load_from_guarded, force=True)


def load_from_guarded(filename: str, map_location: Any = None) -> Any:
    """:func:`load_checkpoint` for MMEngine, whose Runner runs the text in ``meta['config']`` as Python on resuming."""
    checkpoint = load_checkpoint(filename, map_location)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict) and not _trust_all:
        checkpoint['meta'].pop('config', None)
    return checkpoint


def _local(filename: str) -> Path:
    """The file itself, downloaded into torch.hub's folder as MMEngine does."""
    scheme, _, name = filename.rpartition('://')
    if scheme in ('torchvision', 'modelzoo'):
        return _local(_zoo(filename, name, get_torchvision_models()))
    if scheme in ('open-mmlab', 'openmmlab'):
        name = get_deprecated_model_names().get(name, name)
        return _local(_zoo(filename, name, get_external_models()))
    if scheme in ('http', 'https'):
        return _download(filename)
    if scheme:
        raise ValueError(
            f'expected a path or an URL, found {filename!r}, which cannot be read safely: download it first'
        )
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'expected a checkpoint file or URL, found no file {filename!r}')
    return path


def _zoo(filename: str, name: str, urls: dict[str, str]) -> str:
    if name not in urls:
        raise FileNotFoundError(f'expected a model of the zoo, found no {filename!r}')
    return urls[name]


def _download(url: str) -> Path:
    """Rank 0 first; a file that is there is taken as it is."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if get_rank() == 0 and not path.is_file():
            torch.hub.download_url_to_file(url, str(path), progress=os.isatty(0))
    finally:
        barrier()  # also if it fails: the others wait
    if not path.is_file():  # a node with a disk of its own
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path


def _read(path: Path, device: torch.device) -> Any:
    with path.open('rb') as file:
        if file.read(4) == b'PK\x03\x04':
            return _read_zip(file, device)
        file.seek(0)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[257:262] == b'ustar':
                raise RefusedPickle('a tar file, as PyTorch 0.1 wrote them')
            return _read_legacy(data, device)


def _storage(size: int, fill: Callable[[memoryview], Any], device: torch.device) -> torch.UntypedStorage:
    data = torch.empty(size, dtype=torch.uint8)
    if size:
        fill(memoryview(data.numpy()))
    return data.to(device).untyped_storage()


def _read_zip(file: BinaryIO, device: torch.device) -> Any:
    """The format since PyTorch 1.6: ``<name>/data.pkl``, and ``<name>/data/<key>`` for each storage, uncompressed."""
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, torch.UntypedStorage] = {}
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = [record.filename for record in records]
        if any(name.endswith(('/constants.pkl', '/code/')) or '/code/' in name for name in names):
            raise RefusedPickle('TorchScript, which is a program')
        pickles = [name for name in names if name.rpartition('/')[2] == 'data.pkl']
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise ValueError(f"one 'data.pkl' and no name twice, found {len(pickles)} of {len(names)} names")
        if any(record.compress_type for record in records) or sum(record.file_size for record in records) > size:
            raise ValueError('its parts claim more bytes than the file has')
        folder = pickles[0].removesuffix('data.pkl')
        if f'{folder}byteorder' in names and archive.read(f'{folder}byteorder') != b'little':
            raise ValueError('its bytes are not in little-endian order')

        def storage(dtype: torch.dtype, key: str | int, numel: int) -> Storage:
            record = archive.getinfo(f'{folder}data/{key}')
            if record.file_size != numel * dtype.itemsize:
                raise ValueError(f'storage {key}: {numel} elements claimed, {record.file_size} bytes found')
            if record.filename not in storages:
                with archive.open(record) as part:
                    storages[record.filename] = _storage(record.file_size, lambda data: _fill(part, data), device)
            return Storage(storages[record.filename], dtype, size)

        return SafeUnpickler(io.BytesIO(archive.read(pickles[0])), storage, size).load()


def _fill(part: BinaryIO, data: memoryview) -> None:
    """In pieces; at the end zipfile compares the checksum."""
    done = 0
    while count := part.readinto(data[done : done + 2**20]):
        done += count
    if done != len(data):
        raise EOFError(f'{done} of {len(data)} bytes')


def _read_legacy(file: mmap.mmap, device: torch.device) -> Any:
    """The format before PyTorch 1.6: five pickles, then each storage with its number of elements before it."""
    size = len(file)
    found: dict[str | int, tuple[torch.Tensor, int, int]] = {}  # bytes to be filled, number and width of elements
    claimed = 0

    def storage(dtype: torch.dtype, key: str | int, numel: int) -> Storage:
        nonlocal claimed
        if key not in found:
            claimed += numel * dtype.itemsize
            if claimed > size:
                raise ValueError(f'storages of {claimed} bytes claimed, {size} bytes found')
            found[key] = torch.empty(numel * dtype.itemsize, dtype=torch.uint8), numel, dtype.itemsize
        data, own, width = found[key]
        if (own, width) != (numel, dtype.itemsize):
            raise ValueError(f'storage {key}: two sizes claimed')
        return Storage(data.untyped_storage(), dtype, size)

    header = [SafeUnpickler(file).load() for _ in range(2)]
    if header != [_MAGIC, _PROTOCOL]:
        raise ValueError("not a file of torch.save's")
    SafeUnpickler(file).load()  # the sizes of C's types
    result = SafeUnpickler(file, storage, size).load()
    keys = SafeUnpickler(file).load()
    plain = isinstance(keys, list) and all(type(key) in (str, int) for key in keys)
    if plain:
        check_keys(keys)
    if not plain or len(keys) != len(found) or set(keys) != set(found):
        raise ValueError('storages and their list differ')
    for key in keys:
        data, numel, width = found[key]
        if int.from_bytes(file.read(8), 'little') != numel:
            raise ValueError(f'storage {key}: another number of elements than claimed')
        content = file.read(numel * width)
        if len(content) != numel * width:
            raise EOFError(f'storage {key}: {len(content)} of {numel * width} bytes')
        if content:
            memoryview(data.numpy())[:] = content
    return result if device.type == 'cpu' else _move(result, device, {})


def _move(data: Any, device: torch.device, done: dict[int, Any]) -> Any:
    """Tensors in dicts, lists, deques and tuples to another device; what is there twice is moved once."""
    if id(data) not in done:
        done[id(data)] = data  # a list may hold itself
        if isinstance(data, torch.Tensor):
            done[id(data)] = data.to(device)
        elif type(data) in (list, tuple):
            done[id(data)] = type(data)([_move(value, device, done) for value in data])
        elif type(data) is deque:
            done[id(data)] = deque([_move(value, device, done) for value in data], data.maxlen)
        elif isinstance(data, dict):
            for key, value in data.items():
                data[key] = _move(value, device, done)
    return done[id(data)]


def _sync_folder(folder: Path) -> None:
    """Have the names in it on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def write_atomically(target: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``target`` once it is complete and on the disk.

    Until then, and for good if writing fails or the process dies, ``target`` is what it was.

    Raises:
        OSError: writing failed, on a full disk for one.
    """
    target = Path(target)
    part = target.with_name(target.name + '.part')
    try:
        with part.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        with suppress(OSError):  # some file systems know no sync of a folder, and the file stands
            _sync_folder(target.parent)
    except OSError as error:
        kept = 'the file of this name is left as it was' if target.exists() else 'nothing is left of it'
        raise OSError(error.errno, f'{target}: not written, {kept}: {error.strerror or error}') from error
    finally:
        part.unlink(missing_ok=True)
