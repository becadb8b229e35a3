"""What more than one hook needs."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmsokd.distillers import Distiller
from mmsokd.distillers.face import Face


def has_distiller(runner: Runner) -> bool:
    """Whether the runner's model is a distiller; in training :func:`distiller_of` insists on it."""
    return isinstance(_unwrapped(runner), Distiller)


def distiller_of(runner: Runner) -> Distiller:
    """The runner's model without its DDP wrapper.

    Raises:
        TypeError: it is no distiller.
    """
    return _model_of(runner, Distiller, "a distiller, such as 'mmsokd.Distiller',")


def model_of(runner: Runner) -> Face:
    """The runner's model without its DDP wrapper: a distiller, or another model of ours that trains somebody's.

    Raises:
        TypeError: it is none of ours.
    """
    return _model_of(runner, Face, "a model of mmsokd, such as 'mmsokd.Distiller',")


def _model_of(runner: Runner, kind: type, expected: str) -> Face:
    model = _unwrapped(runner)
    if not isinstance(model, kind):
        raise TypeError(f"model.type: expected {expected} beside mmsokd's hooks, found {type(model).__name__}")
    return model


def _unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def save_as_it_is(checkpoint: dict, part: nn.Module, prefix: str) -> None:
    """Save the state of a part of the model that EMAHook does not average.

    That hook has put its copy's in, which are no parameters and stand as they were when it was copied; so the hook that
    calls this comes after it.

    Args:
        checkpoint: what is saved.
        part: of the model, without parameters.
        prefix: of its keys in the model's state dict.
    """
    if 'ema_state_dict' in checkpoint:
        for key, value in part.state_dict(prefix=prefix).items():
            checkpoint['state_dict'][key] = checkpoint['ema_state_dict'][f'module.{key}'] = value


def record_policy(runner: Runner, iteration: int, states: Mapping[str, Mapping]) -> None:
    """Append a line to ``vis_data/policy.json`` of the run's folder, beside MMEngine's ``scalars.json``.

    One line is one JSON object, ``{"iter": ..., <name>: <state>, ...}``: what each policy is after so many iterations.
    Numbers on the host alone; only the first rank writes. A kill may cut the last line off; whoever reads leaves it
    out, and of a resumed run what a later folder tells again (:mod:`mmsokd.visualization.runs`).

    Args:
        runner: of the training.
        iteration: how many iterations have been trained.
        states: policy -> its state, of what JSON can hold; numbers are rounded.
    """
    if not states or not is_main_process():
        return
    path = Path(runner.log_dir) / 'vis_data' / 'policy.json'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a') as file:
            file.write(json.dumps(dict(iter=iteration, **states)) + '\n')
    except OSError as error:  # such as a full disk: it is for looking at alone, and no reason to end a training
        print_log(f'the policy is not written down: {error}', 'current', logging.WARNING)


def ops_state(ops: Mapping[str, tuple[float, float | None]]) -> dict[str, dict[str, float]]:
    """A table of operation -> (how often it fires, its magnitude or None) for :func:`record_policy`."""
    return dict(
        fires={op: round(rate, 7) for op, (rate, _) in ops.items()},
        magnitude={op: round(level, 7) for op, (_, level) in ops.items() if level is not None},
    )


def mean_over_ranks(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each of some small tensors over the processes, on the host, by one message.

    Args:
        values: name -> tensor, of one dtype and of the same shapes on every rank.
    """
    if get_world_size() == 1:
        return values
    flat = torch.cat([value.flatten() for value in values.values()])
    flat = flat.to('cuda' if torch.distributed.get_backend() == 'nccl' else 'cpu')
    all_reduce(flat, op='mean')
    parts = flat.cpu().split([value.numel() for value in values.values()])
    return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}
