"""The teacher's guard: frozen, in eval, run to its deepest tap, and part of nothing that is saved."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from mmsokd.distillers.build import build_model, load_weights
from mmsokd.taps import FeatureTap, Probe, probe, run_for_taps


class Normalization(NamedTuple):
    """How a data preprocessor maps pixels to inputs: ``(pixel - mean) / std``; ``flip`` swaps BGR and RGB before."""

    mean: Tensor  # (3 or 1, 1, 1)
    std: Tensor
    flip: bool

    @classmethod
    def of(cls, preprocessor: nn.Module | None) -> 'Normalization':
        """Read it off a preprocessor of mmengine, mmdet, mmseg or mmpretrain, which name the same thing three ways."""
        flip = any(
            getattr(preprocessor, name, False) for name in ('_channel_conversion', 'channel_conversion', 'to_rgb')
        )
        if not getattr(preprocessor, '_enable_normalize', False):
            return cls(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), flip)
        return cls(preprocessor.mean.cpu().clone(), preprocessor.std.cpu().clone(), flip)

    def same(self, other: 'Normalization') -> bool:
        """Whether both give the same inputs."""
        return (
            self.flip == other.flip
            and bool((self.mean - other.mean).abs().max() < 1e-4)
            and bool((self.std - other.std).abs().max() < 1e-4)
        )


class Teacher:
    """A frozen model and the taps read from it. Not a module: nothing of it reaches the state dict, the optimizer, or
    (through deepcopy) an EMA copy, which shares it.

    Args:
        name: its name in the config, for messages.
        source: ``dict(cfg=..., checkpoint=...)``, or whatever :func:`~mmsokd.distillers.build.build_model` takes. An
            inline model's own ``init_cfg=dict(type='Pretrained', checkpoint=...)`` counts as its checkpoint.
        data_preprocessor: for an inline model that has none of its own.

    Raises:
        ValueError, FileNotFoundError, TypeError: as building and loading do.
    """

    def __init__(self, name: str, source: Any, data_preprocessor: dict | None = None) -> None:
        self.name = name
        checkpoint = source.get('checkpoint') if isinstance(source, dict) and 'type' not in source else None
        self.module = build_model(name, source, data_preprocessor)
        init_cfg = getattr(self.module, 'init_cfg', None)
        pretrained = isinstance(init_cfg, dict) and init_cfg.get('type') in (
            'Pretrained',
            'PretrainedInit',
            PretrainedInit,
        )
        if checkpoint is None and pretrained and not isinstance(source, nn.Module):
            checkpoint = init_cfg['checkpoint']
        if checkpoint is not None:
            load_weights(f'{name}.checkpoint', self.module, checkpoint)
        elif not isinstance(source, nn.Module):
            print_log(f'{name}: no checkpoint is given, so its weights are random', 'current', logging.WARNING)
        self.module.requires_grad_(False).eval()
        self.taps: list[str] = []
        self._tap: FeatureTap | None = None
        self._renorm: tuple[Tensor, Tensor] | None = None
        self._flip = False

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self

    def probe(self, taps: list[str], size: int) -> Probe:
        """Dry-run for ``taps``, which :meth:`features` will read from now on."""
        self.taps = list(dict.fromkeys(taps))
        result = probe(self.module, self.taps, size)
        self._tap = FeatureTap(self.module, self.taps, result.calls, result.overwritten)
        return result

    def match_normalization(self, student: nn.Module | None) -> None:
        """Re-normalise each batch if ``student``, its data preprocessor, prepares inputs differently from ours.

        A teacher that configures none takes the student's inputs as they are.
        """
        own = getattr(self.module, 'data_preprocessor', None)
        if not hasattr(own, '_enable_normalize'):
            return
        ours = Normalization.of(own)
        theirs = Normalization.of(student)
        if ours.same(theirs):
            return
        self._flip = ours.flip != theirs.flip
        mean, std = (theirs.mean.flip(0), theirs.std.flip(0)) if self._flip else (theirs.mean, theirs.std)
        self._renorm = (std / ours.std, (mean - ours.mean) / ours.std)
        print_log(f"{self.name}: its normalization differs from the student's; batches are re-normalised", 'current')

    @torch.compiler.disable
    def prepare(self, inputs: Tensor, data_samples: list | None) -> Tensor:
        """The student's preprocessed batch (N, 3, H, W) as this teacher's own preprocessor would have made it.

        Padding stays what it was: it is added after normalisation in every OpenMMLab library.
        """
        if self._renorm is None:
            return inputs
        self._renorm = scale, shift = tuple(x.to(inputs.device, non_blocking=True) for x in self._renorm)
        out = (inputs.flip(1) if self._flip else inputs) * scale + shift
        height, width = inputs.shape[-2:]
        shapes = [tuple(s.metainfo.get('img_shape', (height, width))[:2]) for s in data_samples or []]
        if all(shape == (height, width) for shape in shapes):
            return out
        limits = torch.tensor(shapes).to(inputs.device, non_blocking=True)  # (N, 2)
        rows = torch.arange(height, device=inputs.device) < limits[:, :1]
        columns = torch.arange(width, device=inputs.device) < limits[:, 1:]
        image = (rows[:, None, :, None] & columns[:, None, None, :]).expand_as(out)
        return torch.where(image, out, inputs)

    @torch.no_grad()
    def features(
        self,
        inputs: Tensor,
        data_samples: list | None,
        replace: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> dict[str, list[Tensor]]:
        """The levels of every tap on a batch that the *student's* preprocessor made.

        ``replace`` puts another output in the place of a layer's (SoKD's ``at``).
        """
        # Moved lazily: the distiller's .to() must not reach a teacher that an EMA copy on another device shares.
        parameter = next(self.module.parameters(), None)
        if parameter is not None and parameter.device != inputs.device:
            self.module.to(inputs.device)
        if any(module.training for module in self.module.modules()):
            self.module.eval()  # a teacher that drops units is another teacher
        caller = inputs.dtype
        other = parameter is not None and parameter.dtype != caller
        inputs = self.prepare(inputs, data_samples)
        if other:  # a student cast as a whole; the weights stay as they are, since copies share them
            inputs = inputs.to(parameter.dtype)
        with self._tap.replacing(replace) as feats:
            run_for_taps(self.module, self.taps, inputs, data_samples)
        return {tap: [x.to(caller) if other else x for x in feats[tap]] for tap in self.taps}
