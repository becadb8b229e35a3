"""What every hook needs first."""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmsokd.distillers import Distiller


def has_distiller(runner: Runner) -> bool:
    """Whether the runner's model is a distiller; in training :func:`distiller_of` insists on it."""
    return isinstance(runner.model.module if is_model_wrapper(runner.model) else runner.model, Distiller)


def distiller_of(runner: Runner) -> Distiller:
    """The runner's model without its DDP wrapper.

    Raises:
        TypeError: it is no distiller.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, Distiller):
        raise TypeError(
            "model.type: expected 'mmsokd.Distiller' or 'mmsokd.SoKDDistiller' beside mmsokd's hooks, found "
            f'{type(model).__name__}'
        )
    return model
