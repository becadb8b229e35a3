"""Watches the detected areas for collapse, and draws them."""

import copy
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mmsokd.checks import check_integer, check_number
from mmsokd.hooks.common import distiller_of
from mmsokd.registry import HOOKS
from mmsokd.visualization import draw_areas, loads_rgb, pictures_of


@HOOKS.register_module()
class DAMHook(Hook):
    """Warns when the area heads collapse to constants, which the agreement loss alone would reward, and draws areas.

    A drawing shows a picture of the batch with the areas' boxes, the student's heatmap on it, and the teacher's. It
    goes to every backend of the runner's Visualizer under the name ``areas_<term>_<number>``; MMEngine's local one
    writes ``vis_data/vis_image/areas_<term>_<number>_<iteration>.png`` in the run's folder.

    Args:
        draw_interval: iterations between two drawings; None draws at the end of every epoch (of the whole training,
            where it counts iterations).
        num_images: pictures of the batch to draw, 0 for none.
        min_heat_std: warn when the heatmap's mean standard deviation over the map falls below it.
        max_cover: warn when the areas cover more than this fraction of the map: they then select nothing.
        log_interval: iterations between two looks.

    Raises:
        ValueError: an option is not valid.
    """

    priority = 'BELOW_NORMAL'

    def __init__(
        self,
        draw_interval: int | None = None,
        num_images: int = 4,
        min_heat_std: float = 1e-4,
        max_cover: float = 0.95,
        log_interval: int = 50,
    ) -> None:
        if draw_interval is not None:
            check_integer('DAMHook.draw_interval', draw_interval, 1)
        check_integer('DAMHook.num_images', num_images, 0)
        check_number('DAMHook.min_heat_std', min_heat_std)
        check_number('DAMHook.max_cover', max_cover)
        check_integer('DAMHook.log_interval', log_interval)
        self.draw_interval = draw_interval
        self.num_images = num_images
        self.min_heat_std = min_heat_std
        self.max_cover = max_cover
        self.log_interval = log_interval
        self._warned: set[str] = set()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the diagnostics every ``log_interval`` iterations; draw when it is time."""
        distiller = distiller_of(runner)
        if distiller.areas is None:
            return
        if self.every_n_train_iters(runner, self.log_interval):
            self._watch(runner, outputs or {})
        if self.num_images and is_main_process() and self._time_to_draw(runner, batch_idx):
            self._draw(runner, distiller, data_batch)

    def _time_to_draw(self, runner: Runner, batch_idx: int) -> bool:
        if self.draw_interval is not None:
            return self.every_n_train_iters(runner, self.draw_interval)
        in_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        return self.is_last_train_iter(runner) or (in_epochs and self.end_of_epoch(runner.train_dataloader, batch_idx))

    def _watch(self, runner: Runner, outputs: dict) -> None:
        std, cover = outputs.get('sokd.heat_std'), outputs.get('sokd.mask_cover')
        if std is not None and float(std) < self.min_heat_std:
            self._warn(
                runner,
                'heat_std',
                f'sokd.heat_std is {float(std):.1e}: the area heads have collapsed to a constant. Raise '
                'areas.anchor_weight, or set areas.stop_teacher_grad=True',
            )
        if cover is not None and float(cover) > self.max_cover:
            self._warn(
                runner,
                'mask_cover',
                f'sokd.mask_cover is {float(cover):.2f}: the areas cover the whole map and select nothing. Lower '
                'areas.num_areas',
            )

    def _warn(self, runner: Runner, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            runner.logger.warning(message)

    def _draw(self, runner: Runner, distiller: Any, data_batch: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            first = {key: value[: self.num_images] for key, value in data_batch.items()}
            data = _preprocess(distiller.data_preprocessor, first)
            inputs, samples = data['inputs'], data.get('data_samples')
            found = distiller.detect_areas(inputs, samples)
        pictures = pictures_of(inputs, distiller.data_preprocessor, samples, loads_rgb(runner.train_dataloader.dataset))
        for name, levels in found.items():
            strides = [teacher.stride for _, teacher in distiller.terms[name].specs]
            drawn = draw_areas(pictures, levels, strides, f'{name}, iteration {runner.iter + 1}')
            for i, image in enumerate(drawn):
                runner.visualizer.add_image(f'areas_{name}_{i}', image, runner.iter + 1)


def _preprocess(preprocessor: nn.Module, data_batch: Any) -> dict:
    """A training batch, padded to one size as in training, without the batch augmentations.

    Those may mix pictures, and mmdet's talk to the other ranks, which do not draw. The copy is for mmseg, which pads
    the labels in place.
    """
    augments = getattr(preprocessor, 'batch_augments', None)
    if augments is None:
        return preprocessor(copy.deepcopy(data_batch), True)
    preprocessor.batch_augments = None
    try:
        return preprocessor(copy.deepcopy(data_batch), True)
    finally:
        preprocessor.batch_augments = augments
