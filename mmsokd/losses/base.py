"""What a term asks of its loss."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


def in_fp32(function: Callable) -> Callable:
    """Let a loss compute in fp32 inside autocast: fp16 and bf16 tensors are widened, float64 is kept."""

    @functools.wraps(function)
    def computed(*args: Any, **kwargs: Any) -> Any:
        args = [_widened(value) for value in args]
        kwargs = {key: _widened(value) for key, value in kwargs.items()}
        levels = [x for value in (*args, *kwargs.values()) for x in (value if _are_levels(value) else [value])]
        tensors = [x for x in levels if isinstance(x, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*args, **kwargs)

    return computed


def _widened(value: Any) -> Any:
    if _are_levels(value):
        return [_widened(level) for level in value]
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def _are_levels(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(level, Tensor) for level in value)


class LossResult(NamedTuple):
    """What a loss gives that has something to tell of itself beside its value.

    Attributes:
        loss: the unweighted scalar.
        stats: name -> scalar, for the log; the names are those of :attr:`TermLoss.stats`.
    """

    loss: Tensor
    stats: Mapping[str, Tensor]


class TermLoss(nn.Module):
    """Base of the losses: ``forward(student, teacher)`` compares one level and gives an unweighted scalar.

    A term builds one loss a level and calls it in fp32 with the adapted student and the teacher, whose graph the
    distiller has cut. The class attributes say what else it takes. Arguments of ``__init__`` named ``student_channels``
    (after the adapter), ``teacher_channels`` and ``signed`` (the teacher takes negative values) are filled in from the
    dry run where the config leaves them out.

    Attributes:
        pyramid: takes all levels of the tap at once: the term builds one loss, and ``forward``'s tensors and the
            arguments above are lists of one a level. Where sizes may differ, levels of other strides pair by order.
        same_channels: both sides need equal channels; a 1x1 adapter is inferred where they differ.
        same_size: both sides need maps of one size; SoKD's plug-ins do in any case.
        ranks: dimensions of what it compares: 2 for vectors (N, C), 3 for tokens (N, L, C), 4 for maps (N, C, H, W).
        per_position: ``forward`` takes ``weight=`` (N, 1, H, W), SoKD's areas, as weights of the positions.
        on_logits: compares logits (N, K) or dense logits (N, K, H, W): no adapter is inferred, and SoKD's plug-ins
            leave them alone; ``refine=dict(at=...)`` reaches them through the teacher.
        wants_samples: ``forward`` takes ``samples=``, the batch's data samples, one a picture.
        default_adapter: registered name of an adapter that belongs to the method.
        stats: names of what it tells of itself, without "loss" in them: ``forward`` then gives a :class:`LossResult`.
            The log shows each one's mean over the levels and terms, and NaN while all of them rest.
    """

    pyramid: ClassVar[bool] = False
    same_channels: ClassVar[bool] = False
    same_size: ClassVar[bool] = True
    ranks: ClassVar[tuple[int, ...]] = (2, 3, 4)
    per_position: ClassVar[bool] = False
    on_logits: ClassVar[bool] = False
    wants_samples: ClassVar[bool] = False
    default_adapter: ClassVar[str | None] = None
    stats: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()  # nn.Module's own takes any argument, to refuse it later
