"""What the networks of a run cost: parameters, and operations for one picture."""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmsokd.distillers.build import build_model
from mmsokd.distillers.face import Face


class Cost(NamedTuple):
    """Of one network."""

    parameters: int
    flops: int | None  # multiply-adds for one picture, as MMEngine counts them; None where they cannot be counted
    problem: str = ''  # why not


def picture_size(cfg: Mapping) -> tuple[int, int]:
    """Height and width in pixels of the pictures a config tests on, padded as its data preprocessor does.

    Of the last transform that has a size; 224 x 224 where none has.
    """
    for name in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset') or {}
        sizes = [size for step in dataset.get('pipeline') or [] for size in [_size_of(step)] if size]
        if sizes:
            divisor = _divisor(cfg)
            return tuple(math.ceil(side / divisor) * divisor for side in sizes[-1])
    return 224, 224


def _size_of(step: Mapping) -> tuple[int, int] | None:
    for key in ('scale', 'crop_size', 'size', 'input_size'):
        value = step.get(key)
        value = [value, value] if isinstance(value, int) else value
        if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
            sides = tuple(side if side > 0 else max(value) for side in value)
            return sides[::-1] if key == 'scale' else sides  # mmcv's scale is (width, height)
    return None


def _divisor(cfg: Mapping) -> int:
    model = cfg.get('model') or {}
    student = model.get('student') if isinstance(model.get('student'), Mapping) else {}
    for part in (cfg, model, student):
        preprocessor = part.get('data_preprocessor') or {}
        divisor = preprocessor.get('pad_size_divisor') or preprocessor.get('size_divisor')
        if divisor:
            return divisor
    return 1


def costs_of(cfg: Config, size: tuple[int, int]) -> dict[str, Cost]:
    """Name -> cost of each network of a config's model; what is learned beside the student has its parameters alone.

    Weights are random and no checkpoint is read.

    Args:
        cfg: of a training.
        size: height and width of the picture.

    Raises:
        Exception: whatever building the model raises.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    source = ConfigDict(cfg.model.copy())
    for key in ('teacher', 'teachers', 'online_teacher'):
        source[key] = _without_checkpoints(source[key]) if key in source else None
    source = {key: value for key, value in source.items() if value is not None or key in cfg.model}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the libraries tell of their own past
        model = revert_sync_batchnorm(build_model('model', source, cfg.get('data_preprocessor'))).eval()
    if not isinstance(model, Face):
        return {'model': cost_of(model, size)}
    costs = {model.trains: cost_of(getattr(model, model.trains), size)}
    for name, teacher in getattr(model, 'teachers', {}).items():
        costs[name if name == 'teacher' else f'teacher {name}'] = cost_of(teacher, size)
    named = dict(
        terms='adapters and losses',
        areas='area heads',
        refine='regressor of refine.at',
        swap='seams',
        branches='branches',
        transforms='transforms',
    )
    parts = {text: getattr(model, key, None) for key, text in named.items()}
    learned = {text: sum(p.numel() for p in part.parameters()) for text, part in parts.items() if part is not None}
    return costs | {text: Cost(count, None) for text, count in learned.items() if count}


def _without_checkpoints(source: object) -> object:
    if not isinstance(source, Mapping):
        return source
    if 'checkpoint' in source:
        return {key: value for key, value in source.items() if key not in ('checkpoint', 'trust_checkpoint')}
    return source if 'type' in source else {key: _without_checkpoints(value) for key, value in source.items()}


def cost_of(model: nn.Module, size: tuple[int, int]) -> Cost:
    """Of one network, in ``tensor`` mode on a picture of noise."""
    parameters = sum(p.numel() for p in model.parameters())
    picture = torch.zeros(1, 3, *size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # tracing tells of every shape that Python reads
            # Half of get_model_complexity_info, whose other half counts activations.
            counter = FlopAnalyzer(_OnTensors(model, size), (picture,))
            counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            return Cost(parameters, int(counter.total()))
    except Exception as error:  # a model may refuse in any way
        return Cost(parameters, None, f'{type(error).__name__}: {error}'.splitlines()[0])


class _OnTensors(nn.Module):
    """A model of OpenMMLab as one function of its pictures."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
        self._samples = [BaseDataElement(metainfo=meta)]

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> object:
        return self.model(inputs, self._samples, mode='tensor')
