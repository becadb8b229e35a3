"""What a model of ours shows to hooks, wrappers and tools: the face of the model that it trains."""

from collections.abc import Callable
from typing import Any, ClassVar

from mmengine.model import BaseModel
from torch import Tensor, nn

from mmsokd.checks import telling
from mmsokd.distillers.finite import FiniteGuard


class Face(BaseModel):
    """A model around the one that it trains, whose face it shows.

    In ``predict`` and ``tensor`` mode it *is* that model; a plain checkpoint of that model fills it; and the attributes
    that it has not itself are that model's.

    Args:
        trained: the model.
        data_preprocessor: one to fall back upon where ``trained`` has none.

    Attributes:
        trains: the name that ``trained`` gets among the children.
    """

    trains: ClassVar[str]

    def __init__(self, trained: nn.Module, data_preprocessor: dict | None = None, init_cfg: dict | None = None) -> None:
        with telling(f'{self.trains}.data_preprocessor'):
            super().__init__(getattr(trained, 'data_preprocessor', None) or data_preprocessor, init_cfg)
        self.add_module(self.trains, trained)
        self._guard = FiniteGuard()

    def __getattr__(self, name: str) -> Any:
        """What is not here is the trained model's: its library's hooks and test-time wrappers read it off the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            trained = vars(self).get('_modules', {}).get(self.trains)  # not there yet while a copy is made
            if trained is None or name.startswith('_'):
                raise
        if not hasattr(trained, name):
            raise AttributeError(
                f'neither {type(self).__name__} nor its {self.trains}, a {type(trained).__name__}, has an attribute '
                f"'{name}'"
            )
        return getattr(trained, name)

    @property
    def get_layer_depth(self) -> Callable:
        """A parameter's depth and the trained model's, for mmpretrain's layer-wise rates; the rest is its head.

        Raises:
            AttributeError: the trained model has no such method.
        """
        depth = getattr(self, self.trains).get_layer_depth
        return lambda param_name, *args: depth(param_name.removeprefix(f'{self.trains}.'), *args)

    def check_finite(self) -> None:
        """Wait for the flags of the steps so far.

        Raises:
            FloatingPointError: some loss was NaN or Inf; names it.
        """
        self._guard.check(wait=True)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Let a plain checkpoint (``load_from`` of the user's old config) fill the trained model."""
        trained = f'{prefix}{self.trains}.'
        own = set(getattr(self, self.trains).state_dict())
        if not any(key.startswith(trained) for key in state_dict):
            for key in [key for key in state_dict if key.removeprefix(prefix) in own]:
                state_dict[trained + key.removeprefix(prefix)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """As MMEngine's models do: ``loss`` gives a dict of losses, any other mode is the trained model's."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return getattr(self, self.trains)(inputs, data_samples, mode=mode)
