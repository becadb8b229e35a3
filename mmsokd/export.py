"""From a checkpoint of ours to one of the plain model that was trained, and a strict way back in."""

import io
import os
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from mmsokd.checkpoint import write_atomically


def export_part(checkpoint: dict[str, Any], part: str) -> dict[str, Any]:
    """One part alone: its weights under the plain model's names, and the meta data that testing needs.

    The weights are those the checkpoint would be tested with: the averaged ones where an EMAHook wrote it.

    Args:
        checkpoint: what MMEngine saved of a model of ours.
        part: where the part is in it: a distiller's ``'student'``; the ``'teacher'`` that SFTN trained, or a branch of
            it, ``'branches.0'``.

    Raises:
        ValueError: it has no such part.
    """
    state = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    state = {str(k): v for k, v in state.items()} if isinstance(state, dict) else {}
    prefix = f'{part}.'
    found = OrderedDict((k.removeprefix(prefix), v) for k, v in state.items() if k.startswith(prefix))
    if not found:
        raise ValueError(
            f"checkpoint: expected a distiller's (or SFTNTeacherTrainer's), whose keys begin with '{prefix}', found "
            f'{list(state)[:3]}'
        )
    meta = checkpoint.get('meta')
    meta = {k: v for k, v in meta.items() if k != 'cfg'} if isinstance(meta, dict) else {}  # cfg is the whole's
    return dict(meta=meta, state_dict=found)


def export_student(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """:func:`export_part` of a distiller's student."""
    return export_part(checkpoint, 'student')


def load_student(model: nn.Module, filename: str | os.PathLike, trust: bool = False) -> None:
    """Load an exported student, or an exported teacher, strictly.

    Args:
        model: the plain model.
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
