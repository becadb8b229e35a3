"""A pickle reader that builds weights and plain data, and calls nothing that a file names.

What a pickle asks for by name is looked up in two tables: no module is imported, no attribute is followed. The names
are those that MMEngine's Runner, PyTorch and NumPy write into a checkpoint; behind each that is called stands a
function of this file, which looks at its arguments. So the hooks of torch's rebuild functions, NumPy's object arrays
and its dtype flags, which may hide code or point into memory, have no effect here.
"""

import _compat_pickle
import pickle
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Hashable
from datetime import date, datetime, time, timedelta, timezone
from pathlib import PosixPath, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor, nn


class RefusedPickle(ValueError):
    """A pickle asks for something that is not weights or plain data; the message is its name."""


class Storage(NamedTuple):
    """The bytes of one or more tensors, as a pickle refers to them; no tensor may claim more than ``most`` bytes."""

    data: torch.UntypedStorage
    dtype: torch.dtype
    most: int


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _is_shape(sizes: Any) -> bool:
    return type(sizes) is tuple and len(sizes) <= 32 and all(type(n) is int and 0 <= n < 2**48 for n in sizes)


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, requires_grad: bool = False, *_: Any) -> Tensor:
    """``torch._utils._rebuild_tensor_v2`` without its hooks, within its storage."""
    _expect(type(storage) is Storage, 'a tensor without a storage')
    _expect(_is_shape(size) and _is_shape(stride) and len(size) == len(stride), 'a tensor without a shape')
    _expect(_is_shape((offset,)), 'a tensor without a place in its storage')
    numel, end = 1, offset + 1
    for n, step in zip(size, stride, strict=True):
        numel, end = numel * n, end + (n - 1) * step
    width = storage.dtype.itemsize
    if numel:  # torch would enlarge the storage
        _expect(end * width <= storage.data.nbytes(), f'a tensor {size} that is larger than its storage')
        _expect(numel * width <= storage.most, f'a tensor {size} that is larger than the file')
    else:
        offset = 0
    tensor = torch.empty(0, dtype=storage.dtype, device=storage.data.device).set_(storage.data, offset, size, stride)
    return tensor.requires_grad_(requires_grad is True)


def _parameter(data: Tensor, requires_grad: bool = True, *_: Any) -> nn.Parameter:
    _expect(isinstance(data, Tensor), 'a parameter without a tensor')
    return nn.Parameter(data.detach(), requires_grad is True)


def _dtype(code: str, *_: Any) -> np.dtype:
    """Numbers, truth values and text; no objects, which are pointers."""
    if not (isinstance(code, str) and re.fullmatch(r'[biufcSU]\d{1,6}', code)):
        raise RefusedPickle(f'numpy.dtype({_told(code)})')
    return np.dtype(code, False, True)  # a copy, since its byte order is set later


def _set_dtype(dtype: np.dtype, state: tuple) -> None:
    """The byte order alone: the rest follows from the code, and wrong flags would make pointers of numbers."""
    _expect(isinstance(state, tuple) and len(state) > 1 and state[1] in ('<', '>', '|', '='), 'a dtype without order')
    if state[1] == '>':
        dtype.__setstate__(dtype.newbyteorder('>').__reduce__()[2])


def _scalar(dtype: np.dtype, raw: bytes) -> np.generic:
    _expect(isinstance(dtype, np.dtype) and type(raw) is bytes and len(raw) == dtype.itemsize, 'a broken number')
    return np.frombuffer(raw, dtype)[0]


def _array(*_: Any) -> np.ndarray:
    """Empty; :func:`_set_array` fills it."""
    return np.empty(0, np.int8)


def _set_array(array: np.ndarray, state: tuple) -> None:
    _, shape, dtype, fortran, raw = state
    _expect(isinstance(dtype, np.dtype) and not dtype.hasobject and type(raw) is bytes, 'an array without numbers')
    _expect(_is_shape(shape), 'an array without a shape')
    numel = 1
    for n in shape:
        numel *= n
    _expect(numel * dtype.itemsize == len(raw), f'an array {shape} of another size than its bytes')
    array.__setstate__((1, shape, dtype, fortran is True, raw))


def _buffered(raw: bytes | bytearray, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    """How pickle's fifth protocol spells an array."""
    array = _array()
    _set_array(array, (1, shape, dtype, order == 'F', bytes(raw) if type(raw) is bytearray else raw))
    return array


def _bytes(kind: type) -> Callable:
    """A constructor of ``kind`` from bytes, or from text as pickle's second protocol spells them; from no number."""

    def build(data: str | bytes = b'', codec: str = 'latin1') -> Any:
        _expect(type(data) in (str, bytes) and codec in ('latin1', 'latin-1'), f'{kind.__name__} without text')
        return kind(data.encode('latin1') if type(data) is str else data)

    return build


def _attribute(owner: Any, name: str) -> Any:
    """How pickle's second protocol spells a method: HistoryBuffer's, and a scheduler's."""
    if not isinstance(owner, type) or type(name) is not str:
        raise RefusedPickle(f'builtins.getattr({_told(owner)}, {_told(name)})')
    full = f'{owner.__module__}.{owner.__qualname__}.{name}'
    if full not in _VALUES:
        raise RefusedPickle(f'builtins.getattr({full})')
    return _VALUES[full]


def _told(value: Any) -> str:
    """For messages: short text, or a type; the text of tuples of tuples of tuples may be endless."""
    return repr(value[:20]) if type(value) is str else type(value).__name__


def check_keys(keys: Collection, there: Collection = ()) -> None:
    """Raise RefusedPickle unless ``keys`` can join ``there`` in time.

    Numbers, text, the like, and tuples of them: the hash of anything nested may take forever. So may many keys of one
    hash, which is easily found for large integers (they leave it modulo 2^61 - 1), complex numbers and tuples; of
    tuples there are few and short ones in any honest file.
    """
    for key in keys:
        _expect(type(key) is not tuple or len(key) <= 32, 'a key of more than 32 parts')
        for part in key if type(key) is tuple else (key,):
            _expect(type(part) is not int or abs(part) < 2**61 - 1, 'a key of more than 60 bits')
            plain = part.dtype.char in _KEY_DTYPES if isinstance(part, np.generic) else type(part) in _KEYS
            _expect(plain, f'a key of type {type(part).__name__}')
    if any(type(key) in (tuple, timedelta, datetime, time) for key in keys):  # whose hash is a tuple's
        _expect(len(keys) + len(there) <= 1000, 'more than 1000 keys, with tuples among them')


def _mapping(kind: Callable) -> Callable:
    """A constructor of ``kind`` from nothing, a dict or pairs."""

    def build(items: Any = ()) -> Any:
        _expect(isinstance(items, dict) or type(items) in (list, tuple), 'a mapping of something else than pairs')
        pairs = list(items.items() if isinstance(items, dict) else items)
        check_keys([key for key, _ in pairs])
        return kind(dict(pairs))

    return build


def _collection(kind: type) -> Callable:
    def build(items: Any = ()) -> Any:
        _expect(type(items) in (list, tuple), 'a set of something else than a list')
        check_keys(items)
        return kind(items)

    return build


def _default_dict(factory: Any = None) -> defaultdict:
    if isinstance(factory, _Name):
        factory = _FACTORIES.get(factory.full, factory)
    _expect(factory is None or factory in _FACTORIES.values(), 'a defaultdict of something else than plain data')
    return defaultdict(factory)


def _deque(items: Any = (), maxlen: int | None = None) -> deque:
    _expect(items == () and (maxlen is None or type(maxlen) is int), 'a deque of something else than nothing')
    return deque(maxlen=maxlen)


def _size(sizes: tuple) -> torch.Size:
    _expect(_is_shape(sizes), 'a torch.Size without a shape')
    return torch.Size(sizes)


def _device(kind: str, index: int | None = None) -> torch.device:
    _expect(type(kind) is str and (index is None or type(index) is int), 'a device without a name')
    return torch.device(kind) if index is None else torch.device(kind, index)


def _complex(real: float, imag: float) -> complex:
    _expect(type(real) is type(imag) is float, 'a complex number without two floats')
    return complex(real, imag)


def _integers(kind: type) -> Callable:
    """A constructor of ``kind`` from integers of 64 bits and None; a division of larger ones may take forever."""

    def build(*values: int | None) -> Any:
        for value in values:
            _expect(
                value is None or (type(value) is int and -(2**63) <= value < 2**63),
                f'a {kind.__name__} without integers',
            )
        return kind(*values)

    return build


def _moment(kind: type) -> Callable:
    """A constructor of ``kind`` from what pickle has of it, bytes; ``replace`` looks whether there is such a moment."""

    def build(raw: bytes, *zone: timezone) -> Any:
        _expect(type(raw) is bytes and all(type(z) is timezone for z in zone), f'a {kind.__name__} without bytes')
        return kind(raw, *zone).replace()

    return build


def _timezone(offset: timedelta, *name: str) -> timezone:
    _expect(type(offset) is timedelta and all(type(text) is str for text in name), 'a timezone without an offset')
    return timezone(offset, *name)


def _path(kind: type) -> Callable:
    def build(*parts: str) -> Any:
        _expect(all(type(part) is str for part in parts), 'a path without text')
        return kind(*parts)

    return build


def _set_history(history: HistoryBuffer, state: dict) -> None:
    """Without the statistics, which are methods of the class and are there already."""
    _expect(isinstance(state, dict), 'a HistoryBuffer without its state')
    own = {key: state[key] for key in ('_log_history', '_count_history')}
    _expect(all(isinstance(value, np.ndarray) for value in own.values()), 'a HistoryBuffer without arrays')
    _expect(type(state['max_length']) is int, 'a HistoryBuffer without a length')
    history._set_default_statistics()
    history.__dict__.update(max_length=state['max_length'], **own)


def _set_metadata(mapping: OrderedDict, state: dict) -> None:
    """A state dict's versions; any other attribute could stand in front of a method."""
    if not isinstance(state, dict) or set(state) - {'_metadata'}:
        raise RefusedPickle('collections.OrderedDict.__setstate__')
    mapping.__dict__.update(state)


_CALLS: dict[str, Callable] = {
    'collections.OrderedDict': _mapping(OrderedDict),
    'collections.Counter': _mapping(Counter),  # MultiStepLR's milestones
    'collections.defaultdict': _default_dict,
    'mmengine.config.config.ConfigDict': _mapping(ConfigDict),  # a data set's metainfo
    'builtins.set': _collection(set),
    'builtins.frozenset': _collection(frozenset),
    'builtins.getattr': _attribute,
    'builtins.bytes': _bytes(bytes),
    'builtins.bytearray': _bytes(bytearray),
    'builtins.complex': _complex,
    'builtins.range': _integers(range),
    'builtins.slice': _integers(slice),
    'collections.deque': _deque,
    'datetime.date': _moment(date),
    'datetime.datetime': _moment(datetime),
    'datetime.time': _moment(time),
    'datetime.timedelta': _integers(timedelta),
    'datetime.timezone': _timezone,
    'pathlib.PosixPath': _path(PosixPath),
    'pathlib.PurePosixPath': _path(PurePosixPath),
    '_codecs.encode': _bytes(bytes),
    'numpy.dtype': _dtype,
    'numpy.core.numeric._frombuffer': _buffered,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy.core.multiarray._reconstruct': _array,
    'torch.Size': _size,
    'torch.device': _device,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
}
_STORAGES = dict(
    FloatStorage=torch.float32,
    DoubleStorage=torch.float64,
    HalfStorage=torch.float16,
    BFloat16Storage=torch.bfloat16,
    LongStorage=torch.int64,
    IntStorage=torch.int32,
    ShortStorage=torch.int16,
    CharStorage=torch.int8,
    ByteStorage=torch.uint8,
    BoolStorage=torch.bool,
    ComplexFloatStorage=torch.complex64,
    ComplexDoubleStorage=torch.complex128,
    UntypedStorage=torch.uint8,
)
_FACTORIES = {  # of a defaultdict
    f'{kind.__module__}.{kind.__name__}': kind
    for kind in (dict, list, tuple, set, int, float, bool, str, OrderedDict, Counter, deque)
}
_KEYS = (
    *(str, int, float, bool, bytes, type(None), torch.dtype, torch.device),
    *(date, datetime, time, timedelta, PosixPath, PurePosixPath),
)
_KEY_DTYPES = '?bhilqpBHILQPefdSU'  # no complex numbers, and none of more than 64 bits
_VALUES: dict[str, Any] = {
    'numpy.ndarray': np.ndarray,
    **_FACTORIES,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': OneCycleParamScheduler,
    **{f'torch.{name}': dtype for name, dtype in _STORAGES.items()},
    'torch.storage.UntypedStorage': torch.uint8,
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
for _method in (HistoryBuffer.min, HistoryBuffer.max, HistoryBuffer.mean, HistoryBuffer.current):
    _VALUES[f'{_method.__module__}.{_method.__qualname__}'] = _method
for _method in (OneCycleParamScheduler._annealing_cos, OneCycleParamScheduler._annealing_linear):
    _VALUES[f'{_method.__module__}.{_method.__qualname__}'] = _method

# What builds plain data, and refers to a name. Left out: classes with arguments of their own (INST, OBJ, NEWOBJ_EX),
# copyreg's extensions, and buffers from outside.
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING
    SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES EMPTY_LIST EMPTY_DICT EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL BINPERSID
    """.split()


class _Name(NamedTuple):
    """What stands on the stack for a function of ``_CALLS``."""

    full: str


class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle from ``file``.

    It is Python's own implementation in Python, since the one in C calls what it finds on its stack.

    Args:
        file: where the pickle begins.
        storage: (dtype, key, number of elements) -> the storage of tensors.
        size: of the file; what is copied out of text and lists may take a few times as much.

    Raises:
        RefusedPickle: the pickle names what is in neither table, or sets the state of something else.
        Exception: of any type, where the pickle is damaged.
    """

    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES}

    def __init__(
        self, file: BinaryIO, storage: Callable[[torch.dtype, Hashable, int], Storage] | None = None, size: int = 0
    ) -> None:
        super().__init__(file, encoding='utf-8')
        self._storage = storage
        self._budget = 4 * size + 2**16

    def _spend(self, args: Any) -> None:
        _expect(type(args) in (tuple, dict), 'a call without arguments')
        self._pay(sum(len(x) for x in args if isinstance(x, (str, bytes, bytearray, tuple, list, dict))))

    def _pay(self, price: int) -> None:
        self._budget -= price
        _expect(self._budget >= 0, 'the same data copied many times')

    def _append(self, value: Any) -> None:
        """At a price, since a few bytes may ask for a set or a deque, which are large when they are empty."""
        self._pay(sys.getsizeof(value) // 16)
        self.append(value)

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up; nothing is imported."""
        if self.proto < 3:  # Python 2's names, as pickle translates them
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f'{module}.{name}'
        known = full.replace('numpy._core.', 'numpy.core.').replace('pathlib._local.', 'pathlib.')
        if known in _CALLS:
            return _Name(known)
        if known not in _VALUES:
            raise RefusedPickle(full)
        return _VALUES[known]

    def persistent_load(self, pid: Any) -> Storage:
        """How torch refers to a tensor's bytes."""
        kind, dtype, key, _location, numel, *view = pid
        if kind != 'storage' or self._storage is None or any(view):
            raise RefusedPickle(f'a {_told(kind)} beside the tensors')
        _expect(isinstance(dtype, torch.dtype) and dtype in _STORAGES.values(), 'a storage without numbers')
        _expect(type(key) in (str, int), 'a storage without a name')
        check_keys([key])
        _expect(type(numel) is int and numel >= 0, 'a storage without a size')
        return self._storage(dtype, key, numel)

    def load_reduce(self) -> None:
        """Call a function of this file."""
        args = self.stack.pop()
        name = self.stack.pop()
        if not isinstance(name, _Name):
            raise RefusedPickle(getattr(name, '__qualname__', type(name).__name__))
        self._spend(args)
        self._append(_CALLS[name.full](*args))

    def load_newobj(self) -> None:
        """Of the classes, HistoryBuffer alone is made so."""
        args = self.stack.pop()
        kind = self.stack.pop()
        if kind is not HistoryBuffer or args != ():
            raise RefusedPickle(getattr(kind, '__qualname__', type(kind).__name__))
        self.append(HistoryBuffer.__new__(HistoryBuffer))

    def load_build(self) -> None:
        """Set the state of the four types that have one."""
        state = self.stack.pop()
        self._spend(state)
        target = self.stack[-1]
        for kind, build in (
            (OrderedDict, _set_metadata),
            (HistoryBuffer, _set_history),
            (np.ndarray, _set_array),
            (np.dtype, _set_dtype),
        ):
            if isinstance(target, kind):
                return build(target, state)
        raise RefusedPickle(f'{type(target).__name__}.__setstate__')

    def load_bytearray8(self) -> None:
        """What is there, before any memory is reserved for it."""
        size = int.from_bytes(self.read(8), 'little')
        data = self.read(size)
        _expect(len(data) == size, f'{size} bytes claimed, {len(data)} found')
        self.append(bytearray(data))

    def load_empty_set(self) -> None:
        """At its price."""
        self._append(set())

    def load_frozenset(self) -> None:
        """Of plain keys."""
        items = self.pop_mark()
        check_keys(items)
        self._append(frozenset(items))

    def load_additems(self) -> None:
        """To a set only."""
        items = self.pop_mark()
        _expect(type(self.stack[-1]) is set, f'items of a {type(self.stack[-1]).__name__}')
        check_keys(items, self.stack[-1])
        self.stack[-1].update(items)

    def load_append(self) -> None:
        """To a list or deque only."""
        item = self.stack.pop()
        self._extend([item])

    def load_appends(self) -> None:
        """To a list or deque only."""
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        _expect(type(self.stack[-1]) in (list, deque), f'items of a {type(self.stack[-1]).__name__}')
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        """In a dict only."""
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    def load_setitems(self) -> None:
        """In a dict only."""
        self._update(self.pop_mark())

    def _update(self, items: list) -> None:
        target = self.stack[-1]
        _expect(type(target) in (dict, OrderedDict, defaultdict), f'keys of a {type(target).__name__}')
        check_keys(items[::2], target)
        target.update(zip(items[::2], items[1::2], strict=True))

    for _code, _load in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.BUILD, load_build),
        (pickle.BYTEARRAY8, load_bytearray8),
        (pickle.EMPTY_SET, load_empty_set),
        (pickle.FROZENSET, load_frozenset),
        (pickle.ADDITEMS, load_additems),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
    ):
        dispatch[_code[0]] = _load
    del _code, _load

    def load(self) -> Any:
        """The object; an instruction that is not read is named as such."""
        try:
            return super().load()
        except KeyError as error:
            raise ValueError(f'an instruction or a reference that is unknown: {error}') from error
