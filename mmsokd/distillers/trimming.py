"""Letting go of the parts of a teacher that its taps do not need."""

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Gone(nn.Module):
    """Stands in the place of a part that is no longer there, and says so when somebody wants it.

    Args:
        key: the teacher's, for messages.
        path: of the part.
    """

    def __init__(self, key: str, path: str) -> None:
        super().__init__()
        self._key, self._path = key, path

    def __getattr__(self, name: str) -> Any:
        self._refuse()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise AttributeError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AttributeError(
            f"{self._key}.trim: expected False where '{self._path}' is needed, which no tap reads, found True"
        )


class _Reading(TorchDispatchMode):
    """Notes the memory of every tensor that an operation is given."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        tree_map_only(Tensor, lambda x: self.read.add(_memory(x)), [*args, *(kwargs or {}).values()])
        return func(*args, **(kwargs or {}))


def let_go(model: nn.Module, run: Callable[[], Any], key: str) -> list[str]:
    """Replace each outermost part of ``model`` that ``run`` neither calls nor reads a weight of by :class:`Gone`.

    Args:
        model: whose parts may go.
        run: a forward through all that is needed.
        key: the model's, for messages.

    Returns: the paths of what is gone.

    Raises:
        AttributeError: ``run`` needs one of them by ways that nobody sees.
    """
    called: set[nn.Module] = set()
    handle = register_module_forward_pre_hook(lambda module, args: called.add(module))
    try:
        with _Reading() as reading:  # weights may be read without a call, as of attention's last projection
            run()
    finally:
        handle.remove()

    def is_needed(part: nn.Module) -> bool:
        return not called.isdisjoint(part.modules()) or any(_memory(p) in reading.read for p in part.parameters())

    gone = []

    def visit(part: nn.Module, path: str) -> None:
        for name, child in part.named_children():
            own = f'{path}.{name}'.lstrip('.')
            if is_needed(child):
                visit(child, own)
            elif any(True for _ in child.parameters()):
                part.add_module(name, Gone(key, own))
                gone.append(own)

    visit(model, '')
    run()
    return gone


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
