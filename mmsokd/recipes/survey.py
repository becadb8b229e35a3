"""What a model's modules give in one dry run: the taps that there are, and why the others are none."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mmsokd.taps import (
    Features,
    FeatureSpec,
    FeatureTap,
    Tap,
    dry_inputs,
    find_module,
    in_eval,
    parse_tap,
    paths_of,
    run_for_taps,
    spec_of,
)

_PATH = re.compile(r'\w+(\.\w+)*')  # what a tap can name
_AUXILIARY = 'auxiliary_head'  # of mmseg, which runs it in training only


class Survey:
    """One dry run of a model with an ear at every module.

    Args:
        model: of mmdet, mmseg or mmpretrain.
        size: side of the noise image, in pixels.

    Attributes:
        model, size: these.
        modules: path -> module, of all that a tap may name, in the order of definition.
        order: path -> when it first gave something, of those that ran.
        stopped: what ended the forward before its end, or None.

    Raises:
        ValueError: the model's extractor does not run on such a picture; tells why.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self.model = model
        self.size = size
        self.modules = {
            path: module
            for path, module in model.named_modules()
            if _PATH.fullmatch(path) and path.split('.')[0] != 'data_preprocessor'
        }
        self.order: dict[str, int] = {}
        self.stopped: str | None = None
        auxiliary = [path for path in self.modules if path.split('.')[0] == _AUXILIARY]
        self._features: dict[str, Features] = {}
        self._listen([path for path in self.modules if path not in auxiliary])
        if auxiliary:
            self._listen(auxiliary)

    @torch.no_grad()
    def _listen(self, paths: list[str]) -> None:
        tap = FeatureTap(self.model, paths).replacing({path: self._clock(path) for path in paths})
        with in_eval(self.model), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            try:
                with tap as feats:
                    self._features.update(dict.fromkeys(paths, feats))
                    run_for_taps(self.model, paths, *dry_inputs(self.model, self.size))
            except Exception as error:  # a head may want annotations: the features before it are there
                if 'backbone' not in self.order or isinstance(error, RuntimeError):  # of sizes
                    raise ValueError(
                        f'expected a model that runs on a picture of {self.size} x {self.size} pixels, found that '
                        f'{type(self.model).__name__} does not: {error}'
                    ) from error
                self.stopped = f'{type(error).__name__}: {error}'

    def _clock(self, path: str) -> Callable[[Any], Any]:
        def note(output: Any) -> Any:
            self.order.setdefault(path, len(self.order))
            return output

        return note

    def outputs(self, path: str) -> list[Any]:
        """What the module returned, call by call; nothing where it is not there."""
        return self._features[path].outputs(path) if path in self._features else []

    def specs(self, tap: Tap) -> list[FeatureSpec]:
        """The levels of a tap.

        Raises:
            UnknownTapError: there is no such module, or it has no such output; names the nearest ones.
            TypeError, ValueError: what it gives is no feature of a picture.
        """
        for path in paths_of(tap):
            find_module(self.model, parse_tap(path).module)
        levels = [(path, x) for path in paths_of(tap) for x in self._features[parse_tap(path).module][path]]
        return [spec_of(self.model, path, level, self.size) for path, level in levels]

    def find(self, tap: Tap) -> list[FeatureSpec]:
        """As :meth:`specs`, but nothing where that raises."""
        try:
            return self.specs(tap)
        except (KeyError, TypeError, ValueError):
            return []
