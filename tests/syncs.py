"""Counts what would make the host wait for a device, by tracing a step on the CPU."""

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

# Their results' shapes, or what Python gets, depend on values.
_WAITING = (
    '_local_scalar_dense', 'is_nonzero', 'nonzero', 'masked_select', 'equal', 'repeat_interleave', 'unique', '_unique',
    '_unique2', 'unique_dim', 'unique_consecutive', 'bincount', 'allclose',
)  # fmt: skip
_INDEXING = ('index', 'index_put', 'index_put_', '_index_put_impl_')


class Syncs(TorchDispatchMode):
    """Within, ``found`` counts the operations that read values of what depends on ``roots``.

    Host tensors, such as the policy, do not: reading them makes nobody wait.
    """

    def __init__(self, *roots):
        super().__init__()
        self.found = Counter()
        self._on_device = WeakIdKeyDictionary()
        for root in roots:
            self._on_device[root] = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if any(x in self._on_device for x in given):
            name = func.overloadpacket.__name__
            by_mask = name in _INDEXING and any(x.dtype in (torch.bool, torch.uint8) for x in given[1:])
            if name in _WAITING or by_mask:
                self.found[name] += 1
            for x in tree_flatten(out)[0]:
                if isinstance(x, Tensor):
                    self._on_device[x] = True
        return out


def syncs_of(model, data):
    """Of a forward in ``loss`` mode and its backward, on a preprocessed batch."""
    with Syncs(data['inputs'], *model.parameters()) as syncs:
        losses = model(**data, mode='loss')
        total, _ = model.parse_losses(losses)
        total.backward()
    return syncs.found
