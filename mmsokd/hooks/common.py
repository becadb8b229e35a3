"""What every hook needs first."""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

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
    return _model_of(runner, Distiller, "'mmsokd.Distiller' or 'mmsokd.SoKDDistiller'")


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
