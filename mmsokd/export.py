"""From a distiller's checkpoint to one of the plain student, and a strict way back in."""

import io
import os
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from mmsokd.checkpoint import write_atomically

_PREFIX = 'student.'


def export_student(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The student alone: its weights under the plain model's names, and the meta data that testing needs.

    The weights are those the checkpoint would be tested with: the averaged ones where an EMAHook wrote it.

    Args:
        checkpoint: what MMEngine saved of a distiller.

    Raises:
        ValueError: it is not a distiller's checkpoint.
    """
    state = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    state = {str(k): v for k, v in state.items()} if isinstance(state, dict) else {}
    student = OrderedDict((k.removeprefix(_PREFIX), v) for k, v in state.items() if k.startswith(_PREFIX))
    if not student:
        raise ValueError(
            f"checkpoint: expected a distiller's, whose keys begin with '{_PREFIX}', found {list(state)[:3]}"
        )
    meta = checkpoint.get('meta')
    meta = {k: v for k, v in meta.items() if k != 'cfg'} if isinstance(meta, dict) else {}  # cfg is the distiller's
    return dict(meta=meta, state_dict=student)


def load_student(model: nn.Module, filename: str | os.PathLike, trust: bool = False) -> None:
    """Load an exported student strictly.

    Args:
        model: the plain student.
        filename: path or URL.
        trust: read the file by pickle, which runs whatever it says.

    Raises:
        ValueError: it belongs to another config; says how many keys fit.
    """
    from mmsokd.distillers.build import load_weights

    load_weights('checkpoint', model, filename, trust)


def save_atomically(checkpoint: dict[str, Any], target: str | os.PathLike) -> None:
    """Save so that a failure leaves what was there."""
    data = io.BytesIO()  # torch.save into a file hides the reason of a failure behind one of its own
    torch.save(checkpoint, data)
    with write_atomically(target) as file:
        file.write(data.getbuffer())
