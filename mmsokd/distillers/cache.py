"""What a frozen teacher gave for a picture, on disk: for this very picture it need not be run again."""

import functools
import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmsokd.taps import Tap

try:
    import lmdb
except ImportError:  # who put the environment together by hand may do without it, and without a cache
    lmdb = None

DTYPES = ('float16', 'bfloat16', 'float32')
_FORMAT = 1
_MANIFEST = b'manifest'  # shorter than the key of any picture
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MIB, _GIB = 2**20, 2**30

Run = Callable[[Tensor, list | None], dict[Tap, list[Tensor]]]


def fingerprints(inputs: Tensor, data_samples: Sequence | None = None) -> list[bytes]:
    """One key a picture of the batch (N, C, H, W): 128 bits of its pixels, and the size that its sample tells.

    A multilinear hash modulo 2^64, twice: two pictures share a key with a chance of about 2^-66 and on every device a
    picture has the same. Padding counts as pixels do. Heads that mask the padding go by ``img_shape``.
    """
    words = inputs.detach().contiguous().flatten(1).view(_WORDS[inputs.element_size()]).long()
    sums = [(words * row).sum(1) for row in _factors(words.shape[1], inputs.device)]
    sums = torch.stack(sums, 1).cpu().numpy()  # (N, 2)
    batch = tuple(inputs.shape[-2:])
    samples = data_samples if data_samples is not None else [None] * len(inputs)
    shapes = [batch if sample is None else sample.metainfo.get('img_shape', batch)[:2] for sample in samples]
    return [row.tobytes() + np.array(shape, np.int32).tobytes() for row, shape in zip(sums, shapes, strict=True)]


@functools.lru_cache(maxsize=2)
def _factors(length: int, device: torch.device) -> Tensor:
    """Two rows of random numbers; NumPy gives the same ones in every version."""
    return torch.from_numpy(np.random.PCG64(0).random_raw(2 * length).view(np.int64).reshape(2, -1)).to(device)


def identity(module: nn.Module) -> dict[str, str]:
    """What of a network determines its outputs: the layers as they are printed, and the weights, by their hashes."""
    lines = [re.sub(r' at 0x[0-9a-f]+', '', line) for line in str(module).splitlines()]
    printed = '\n'.join(line for line in lines if not line.startswith('init_cfg='))
    weights = hashlib.blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        weights.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return dict(network=hashlib.blake2b(printed.encode(), digest_size=16).hexdigest(), weights=weights.hexdigest())


class TeacherCache:
    """The tapped outputs of one teacher, by the pixels that it saw: an LMDB database in a folder of its own.

    A picture that it does not have is run and written; a view that is not the same, pixel by pixel, is another
    picture, so that none gets a wrong output. What is given back is always what was stored, so that it makes no
    difference in which epoch a picture is run. Each batch is one transaction: a killed training leaves a whole
    database, with which the next one goes on; processes of one machine share it.

    Args:
        key: the teacher's in the config, for messages.
        folder: for the database.
        about: what determines the outputs (:func:`identity`, taps, autocast); JSON.
        taps: of the teacher; all are stored.
        dtype: of :data:`DTYPES`, stored.
        capacity: the most pictures there can be, views included.
        hint: for the message that there are more.

    Raises:
        ImportError: there is no lmdb.
        ValueError: the folder has the outputs of something else, or is damaged.
        OSError: the folder cannot be made.
    """

    def __init__(
        self, key: str, folder: Path, about: dict[str, Any], taps: Sequence[Tap], dtype: str, capacity: int, hint: str
    ) -> None:
        if lmdb is None:
            raise ImportError(
                f'{key}: expected the package lmdb, in which its outputs are kept, found none; pip install lmdb'
            )
        self.key = key
        self.folder = folder
        self.capacity = capacity
        self.read = self.asked = 0  # pictures so far
        self.writes = True  # until the disk is full
        self._dtype = getattr(torch, dtype)
        self._taps = sorted(taps, key=str)
        self._about = _plain(dict(about, format=_FORMAT, taps=self._taps, dtype=dtype))
        self._hint = hint
        self._size: tuple[int, ...] | None = None  # of the pictures
        self._shapes: list[list[tuple[int, ...]]] = []  # tap by tap, level by level
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # Without its metasync a crash of the machine may undo the last batch, and harms none before it.
            self._env = lmdb.open(str(folder), metasync=False)
            self._check_whole()
            manifest = self._manifest()
        except (lmdb.Error, json.JSONDecodeError) as error:
            raise ValueError(
                f"{key}: expected an empty folder, or a teacher's cache, found that '{folder}' cannot be opened: "
                f'{error}; give another cache_dir, or, where it is damaged, delete it'
            ) from error
        if manifest is not None:
            self._adopt(manifest)
            self._make_room()

    def close(self) -> None:
        """Let the database go."""
        self._env.close()

    def __len__(self) -> int:
        """How many pictures there are."""
        return max(0, self._env.stat()['entries'] - 1)

    def __contains__(self, key: bytes) -> bool:
        """Whether there is the picture of this key, of :func:`fingerprints`."""
        with self._env.begin() as txn:
            return txn.get(key) is not None

    @property
    def is_full(self) -> bool:
        """Whether there can be no more."""
        return len(self) >= self.capacity

    @property
    def is_filled(self) -> bool:
        """Whether there is nothing to wait for: it is full, or :meth:`mark_filled` was called."""
        return self.is_full or (self._manifest() or {}).get('filled') == self.capacity

    def mark_filled(self) -> None:
        """Note that all pictures of the data set have been asked for; some may be the same, pixel by pixel."""
        try:
            with self._env.begin(write=True) as txn:
                txn.put(_MANIFEST, json.dumps(dict(json.loads(txn.get(_MANIFEST)), filled=self.capacity)).encode())
        except lmdb.Error as error:
            self._stop_writing(error)

    @torch.compiler.disable
    def features(self, inputs: Tensor, data_samples: list | None, run: Run) -> dict[Tap, list[Tensor]]:
        """The levels of all taps, in the dtype of the batch.

        Args:
            inputs: the batch (N, C, H, W) as the teacher sees it.
            data_samples: one a picture.
            run: gives the levels of all taps for those of the pictures that are not there.

        Raises:
            ValueError: the pictures are of another size than the first, there are more than there can be, or their
                features do not fit the dtype.
        """
        keys = fingerprints(inputs, data_samples)
        self._check_size(inputs)
        rows, missing = self._read(keys, inputs)
        if missing:
            samples = [data_samples[i] for i in missing] if data_samples is not None else None
            levels = run(inputs if len(missing) == len(keys) else inputs[missing], samples)
            if self._size is None:
                self._begin(levels, inputs)
                rows = self._rows(len(keys), inputs)
            found = self._pack(levels)
            rows[missing] = found
            self._write([keys[i] for i in missing], found)
        self.asked += len(keys)
        self.read += len(keys) - len(missing)
        return self._unpack(rows.to(inputs.device, non_blocking=True), inputs.dtype)

    # ---- what is in it ----------------------------------------------------------------------------------------------

    def _manifest(self) -> dict | None:
        with self._env.begin() as txn:
            value = txn.get(_MANIFEST)
        return None if value is None else json.loads(value)

    def _check_whole(self) -> None:
        """Of a file that was cut off, reading what is missing would end the process."""
        size, stat = (self.folder / 'data.mdb').stat().st_size, self._env.stat()
        needed = (self._env.info()['last_pgno'] + 1) * stat['psize'] if stat['entries'] else 0
        if size < needed:
            raise lmdb.CorruptedError(f'data.mdb has {size} of {needed} bytes')

    def _adopt(self, manifest: dict) -> None:
        """Take over what is there already.

        Raises:
            ValueError: it is not this teacher's.
        """
        others = [name for name, value in self._about.items() if manifest.get(name) != value]
        if others:
            raise ValueError(
                f"{self.key}: expected an empty folder, or this teacher's cache, found that '{self.folder}' has one of "
                f'another {" and another ".join(sorted(others))}; delete it, or give another cache_dir'
            )
        self._size = tuple(manifest['picture'])
        self._shapes = [[tuple(shape) for shape in tap] for tap in manifest['levels']]

    def _begin(self, levels: dict[Tap, list[Tensor]], inputs: Tensor) -> None:
        """With the first batch: say for what the database is.

        Raises:
            ValueError: another process was faster, with something else.
        """
        self._shapes = [[tuple(level.shape[1:]) for level in levels[tap]] for tap in self._taps]
        manifest = _plain(dict(self._about, picture=tuple(inputs.shape[1:]), levels=self._shapes))
        self._make_room()
        try:
            with self._env.begin(write=True) as txn:
                txn.put(_MANIFEST, json.dumps(manifest).encode(), overwrite=False)
                manifest = json.loads(txn.get(_MANIFEST))
        except lmdb.Error as error:
            self._stop_writing(error)
        self._adopt(manifest)
        self._check_size(inputs)

    def _make_room(self) -> None:
        """Say what it takes, and look whether the disk has it.

        Raises:
            ValueError: it has not.
        """
        held, page = len(self), self._env.stat()['psize']
        picture = self._width * self._dtype.itemsize
        # What fills no half of a page lies with others, in pages that are half full at least; anything else in its own.
        takes = 2 * (picture + 64) if picture < page // 2 - 64 else math.ceil((picture + 16) / page) * page + 64
        needed, free = max(0, self.capacity - held) * takes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"{self.key}: expected {needed / _GIB:.3g} GiB of free disk at '{self.folder}', for {picture} bytes of "
                f'each of {self.capacity} pictures, found {free / _GIB:.3g}; give another cache_dir, fewer taps, or do '
                'without'
            )
        self._env.set_mapsize(2 * self.capacity * takes + 64 * _MIB)  # of addresses; the file is as large as it must be
        print_log(
            f"{self.key}: {held} of {self.capacity} pictures are cached in '{self.folder}'; {picture} bytes each, "
            f'{self.capacity * takes / _GIB:.3g} GiB on disk in the end',
            'current',
        )

    def _check_size(self, inputs: Tensor) -> None:
        size = tuple(inputs.shape[1:])
        if self._size is not None and size != self._size:
            raise ValueError(
                f"{self.key}: expected pictures of {self._size}, as the first in '{self.folder}', found {size}; let "
                'the pipeline crop, or pad, to one size'
            )

    # ---- reading and writing ----------------------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        """Numbers a picture."""
        return sum(math.prod(shape) for tap in self._shapes for shape in tap)

    def _rows(self, n: int, inputs: Tensor) -> Tensor:
        return torch.empty(n, self._width, dtype=self._dtype, pin_memory=inputs.is_cuda)

    def _read(self, keys: list[bytes], inputs: Tensor) -> tuple[Tensor, list[int]]:
        """The rows (N, numbers), and which of them are not there.

        Raises:
            ValueError: one is damaged.
        """
        if self._size is None:
            return torch.empty(0), list(range(len(keys)))
        rows, missing = self._rows(len(keys), inputs), []
        raw = rows.view(torch.uint8).numpy()  # NumPy has no bfloat16
        with self._env.begin(buffers=True) as txn:
            for i, key in enumerate(keys):
                value = txn.get(key)
                if value is None:
                    missing.append(i)
                elif len(value) == raw.shape[1]:
                    raw[i] = np.frombuffer(value, np.uint8)
                else:
                    raise ValueError(
                        f"{self.key}: expected {raw.shape[1]} bytes a picture, found {len(value)} in '{self.folder}', "
                        'which is damaged; delete it'
                    )
        return rows, missing

    def _pack(self, levels: dict[Tap, list[Tensor]]) -> Tensor:
        """The levels as rows (N, numbers) on the host, as they are stored.

        Raises:
            ValueError: the dtype does not hold them.
        """
        live = torch.cat([level.flatten(1) for tap in self._taps for level in levels[tap]], 1)
        rows = live.to(self._dtype).cpu()
        if not rows.isfinite().all():
            name = str(self._dtype).removeprefix('torch.')
            raise ValueError(
                f'{self.key}: expected features that {name} holds, to {torch.finfo(self._dtype).max:.3g}, found '
                f"{float(live.abs().max()):.3g}; give TeacherCacheHook dtype='bfloat16' or 'float32'"
            )
        return rows

    def _unpack(self, rows: Tensor, dtype: torch.dtype) -> dict[Tap, list[Tensor]]:
        sizes = [math.prod(shape) for tap in self._shapes for shape in tap]
        parts = iter(rows.split(sizes, 1))
        return {
            tap: [next(parts).to(dtype).contiguous().view(-1, *shape) for shape in shapes]
            for tap, shapes in zip(self._taps, self._shapes, strict=True)
        }

    def _write(self, keys: list[bytes], rows: Tensor) -> None:
        """All of a batch, or nothing.

        Raises:
            ValueError: there would be more than there can be.
        """
        if not self.writes:
            return
        try:
            with self._env.begin(write=True) as txn:
                for key, row in zip(keys, rows.view(torch.uint8).numpy(), strict=True):
                    txn.put(key, row, overwrite=False)
                if txn.stat()['entries'] - 1 > self.capacity:
                    raise ValueError(
                        f"{self.key}: expected at most {self.capacity} pictures in '{self.folder}', found more: their "
                        f'views are random, or some there are of another pipeline; {self._hint}'
                    )
        except lmdb.Error as error:
            self._stop_writing(error)

    def _stop_writing(self, error: Exception) -> None:
        """A full disk is no reason to end a training."""
        self.writes = False
        print_log(
            f"{self.key}: its outputs are no longer written to '{self.folder}' (is the disk full?), and what is not "
            f'there is run in every epoch: {error}',
            'current',
            logging.WARNING,
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))
