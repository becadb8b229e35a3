"""From a distiller's checkpoint to one of the plain student, and a strict way back in."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

_PREFIX = 'student.'


def export_student(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The student alone: its weights under the plain model's names, and the meta data that testing needs.

    The weights are those the checkpoint would be tested with: the averaged ones where an EMAHook wrote it.

    Args:
        checkpoint: what MMEngine saved of a distiller.

    Raises:
        ValueError: it is not a distiller's checkpoint.
    """
    state = checkpoint.get('state_dict', {}) if isinstance(checkpoint, dict) else {}
    student = OrderedDict((k.removeprefix(_PREFIX), v) for k, v in state.items() if k.startswith(_PREFIX))
    if not student:
        raise ValueError(
            f"checkpoint: expected a distiller's, whose keys begin with '{_PREFIX}', found {list(state)[:3]}"
        )
    meta = {k: v for k, v in checkpoint.get('meta', {}).items() if k != 'cfg'}  # the config is the distiller's
    return dict(meta=meta, state_dict=student)


def load_student(model: nn.Module, filename: str | os.PathLike) -> None:
    """Load an exported student strictly.

    Raises:
        ValueError: it belongs to another config; says how many keys fit.
    """
    from mmsokd.distillers.build import load_weights

    load_weights('checkpoint', model, str(filename))


def save_atomically(checkpoint: dict[str, Any], target: str | os.PathLike) -> None:
    """Write beside ``target`` and rename, so that a failed save leaves what was there."""
    target = Path(target)
    part = target.with_name(target.name + '.part')
    try:
        torch.save(checkpoint, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
