"""TST: the student learns on pictures that the teacher knows and the student does not."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmsokd.augment import ImageAugmenter
from mmsokd.augment.warping import has_places, warp_samples
from mmsokd.checks import check_number, check_range
from mmsokd.distillers.base import Distiller
from mmsokd.distillers.parts import build_part, check_part
from mmsokd.distillers.teacher import Normalization, Teacher
from mmsokd.losses.flipped import flipped, left_as_they_are
from mmsokd.registry import MODELS


@MODELS.register_module()
class TSTDistiller(Distiller):
    r"""A :class:`Distiller` whose batch holds each picture twice: as it is, and as a learned augmenter has changed it.

    After "Teaching What You Should Teach: A Data-Based Distillation Method" (Shao et al., IJCAI 2023, arXiv
    2212.05422): the student's step is stage III,

    .. math:: L = 1/2 [L_{task}(S(\tilde x), \tilde y) + L_{KD}(\tilde x)] + 1/2 [L_{task}(S(x), y) + L_{KD}(x)]

    which for losses that are means over the batch is that of one batch ``[x ; x~]``; a detector's losses are means over
    the positives of both halves, which differ a little in number [ours]. The terms and SoKD's plug-ins, off by default
    as in :class:`Distiller`, see the doubled batch. :meth:`search_losses` is stage II's objective, for
    :class:`~mmsokd.hooks.TSTHook`; without that hook's bursts this is the method's control.

    Args:
        augmenter: config of an :class:`~mmsokd.augment.ImageAugmenter`. A segmentor's heads tell its ``ignore_index``,
            and the data preprocessor its ``rgb``: pictures are loaded as BGR, which it flips, or not. Give
            ``rgb=True`` where they are loaded as RGB, as mmpretrain's CIFAR is.
        share: of the batch's pictures, which part gets a changed twin [ours]: the paper's 1 doubles the cost of a step.
            With less, the twins weigh less too.
        kwargs: :class:`Distiller`'s.

    Raises:
        ValueError: there is no teacher, or an option is not valid.
    """

    may_cache = False  # the twins are drawn anew in every step
    needs_whole_teacher = True  # whose losses say which pictures are worth teaching

    def __init__(
        self,
        *args: Any,
        augmenter: Mapping = dict(type='mmsokd.ImageAugmenter'),
        share: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not self._teachers:
            raise ValueError('teacher: expected one, whose losses say which pictures are worth teaching, found none')
        check_range('share', share, 0, 1)
        check_number('share', share, 1e-3)
        self.share = share
        self._pixels = Normalization.of(self.data_preprocessor)
        self._are_pixels = False  # not looked yet
        ignored = _ignored_labels(self.student)
        found = dict(ignore_index=next(iter(ignored.values()))) if ignored else {}
        found['rgb'] = self._pixels.flip  # OpenMMLab loads BGR
        self.augmenter = build_part('augmenter', augmenter, 'augment', **found)
        check_part('augmenter', self.augmenter, ImageAugmenter)
        for path, label in ignored.items():
            if label != self.augmenter.ignore_index:
                raise ValueError(
                    f'augmenter.ignore_index: expected {label}, the ignore_index of student.{path}, found '
                    f'{self.augmenter.ignore_index}'
                )

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """As :meth:`Distiller.loss`, of the pictures and their changed twins.

        Raises:
            ValueError: there are no ``data_samples``, without which nobody knows how the pictures lie in the batch.
        """
        if not data_samples:
            raise ValueError('data_samples: expected one a picture, with its annotations, found none')
        return super().loss(*self._doubled(inputs, data_samples))

    @torch.compiler.disable
    @torch.no_grad()
    def _doubled(self, inputs: Tensor, samples: list) -> tuple[Tensor, list]:
        """``[x ; x~]``. A loader shuffles, so that its first pictures are as good a part as any."""
        n = max(1, round(self.share * len(inputs)))
        sizes = self._pixels.sizes(inputs, samples)  # the whole batch tells what is padding
        changed, more = self.augment(inputs[:n], samples[:n], sizes=sizes[:n])
        return torch.cat([inputs, changed]), [*samples, *more]

    def augment(
        self,
        inputs: Tensor,
        samples: list,
        chi: Mapping[str, Tensor] | None = None,
        sizes: list[tuple[int, int]] | None = None,
    ) -> tuple[Tensor, list]:
        """The batch as the augmenter changes it in one draw.

        Args:
            inputs: the preprocessed batch (N, 3, H, W): the operators' pixels are got back from it, and what they give
                is normalised again. Padding stays as it is.
            samples: one a picture; what has boxes or label maps is copied.
            chi: the augmenter's logits to learn by (see :meth:`ImageAugmenter.forward`).
            sizes: height and width of each picture without its padding; by default the samples tell.

        Raises:
            ValueError: a sample says that its picture is larger than the batch, or what is got back is no pixels.
        """
        mean, std = (x.to(inputs.device, non_blocking=True) for x in (self._pixels.mean, self._pixels.std))
        self._pixels = self._pixels._replace(mean=mean, std=std)  # copied once
        shapes = self._pixels.sizes(inputs, samples) if sizes is None else sizes
        _check_shapes(shapes, inputs)
        together = has_places(samples)
        with torch.autocast(inputs.device.type, enabled=False):
            pixels = (inputs.float() * std + mean) / 255
            self._check_pixels(pixels, shapes)
            draw = self.augmenter.sample(len(inputs))
            pixels, matrix, canvas = self.augmenter(pixels, draw, shapes, together, chi)
            changed = ((pixels * 255 - mean) / std).to(inputs.dtype)
            if canvas.mask is not None:
                changed = torch.where(canvas.mask > 0, changed, inputs)
            if matrix is not None:
                samples = warp_samples(samples, matrix, canvas.size, self.augmenter.ignore_index)
        return changed, samples

    def _check_pixels(self, pixels: Tensor, sizes: list[tuple[int, int]]) -> None:
        """Look at the first batch: what an operator such as Invert makes of other numbers, no network has ever seen.

        Wide limits: a colour transform before may leave 0 and 255 behind. Padding is not looked at.
        """
        if self._are_pixels:
            return
        ends = [picture[:, :h, :w].aminmax() for picture, (h, w) in zip(pixels, sizes, strict=True)]
        low, high = min(float(end.min) for end in ends) * 255, max(float(end.max) for end in ends) * 255
        if low < -64 or high > 510 or 0 < max(-low, high) < 8:
            raise ValueError(
                f'data_preprocessor: expected pixels of 0 to 255 before its normalization, found {low:.3g} to '
                f'{high:.3g}; let it normalize with mean and std, and no transform of the pipeline'
            )
        self._are_pixels = True

    def search_losses(self, inputs: Tensor, samples: list, chi: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Stage II's objective on one batch: the teacher shall be right on the changed pictures, the student wrong.

        .. math:: L_{aug} = \overline{-\log p_T(y | \tilde x)} + \overline{-\log(1 - p_S(y | \tilde x) + 10^{-8})}

        The teacher's summand is its task loss, a mean over the teachers where there are several [ours]; the student's
        is its task loss turned round (:mod:`~mmsokd.losses.flipped`).

        Args:
            inputs: the preprocessed batch (N, 3, H, W).
            samples: one a picture.
            chi: leaves, to which the graph goes.

        Returns:
            ``teacher`` and ``student``, scalars; their sum is to be minimised.
        """
        images, samples = self.augment(inputs, samples, chi)
        totals = [
            self.parse_losses(self._teacher_losses(teacher, images, samples))[0] for teacher in self._teachers.values()
        ]
        with flipped(self.student), _computing_losses(self.student):
            wrong = self.parse_losses(self.student(images, samples, mode='loss'))[0]
        return dict(teacher=torch.stack(totals).mean(), student=wrong)

    def _teacher_losses(self, teacher: Teacher, images: Tensor, samples: list) -> dict:
        teacher.make_ready(images.device)
        with _computing_losses(teacher.module):
            return teacher.module(teacher.prepare(images, samples), samples, mode='loss')

    def rehearse_search(self, inputs: Tensor, samples: list) -> None:
        """Try :meth:`search_losses` on a batch, as a burst would.

        Raises:
            ValueError: a network's losses cannot be computed in a burst, or the student's not be turned round.
        """
        images, samples = self.augment(inputs, samples, self.augmenter.tensors())

        def losses() -> dict[str, Tensor]:
            with _computing_losses(self.student):
                return self.parse_losses(self.student(images, samples, mode='loss'))[1]

        parts: dict[str, Callable] = {
            name: partial(self._teacher_losses, teacher, images, samples) for name, teacher in self._teachers.items()
        }
        parts['student'] = partial(left_as_they_are, self.student, losses)
        found = {}
        for name, part in parts.items():
            try:
                found[name] = part()
            except (ValueError, torch.cuda.OutOfMemoryError):  # which tell enough
                raise
            except Exception as error:
                raise ValueError(
                    f'{name}: expected losses that can be computed in eval mode, as a burst of TSTHook does, found '
                    f'{type(error).__name__}: {error}'
                ) from error
        if found['student']:
            raise ValueError(
                "student: expected losses that are sums of its loss modules', to be turned round, found "
                f'{found["student"]}, which a head computes otherwise; another student, or no bursts in TSTHook'
            )


@contextmanager
def _computing_losses(network: nn.Module) -> Iterator[None]:
    """Within the block a network in eval mode prepares for its losses: some heads give other outputs for prediction.

    It is those modules that have a ``loss``, the network and its heads, which ask for their own mode. Normalization and
    dropout are modules of their own, and stay in eval mode.
    """
    asleep = [module for module in network.modules() if hasattr(module, 'loss') and not module.training]
    for module in asleep:
        module.training = True
    try:
        yield
    finally:
        for module in asleep:
            module.training = False


def _ignored_labels(student: nn.Module) -> dict[str, int]:
    """Path -> the label that a head of mmseg leaves out."""
    heads = {path: module for path, module in student.named_modules() if hasattr(module, 'loss_decode')}
    labels = {path: getattr(head, 'ignore_index', None) for path, head in heads.items()}
    return {path: label for path, label in labels.items() if label is not None}


def _check_shapes(shapes: list[tuple[int, int]], inputs: Tensor) -> None:
    H, W = inputs.shape[-2:]
    for i, (height, width) in enumerate(shapes):
        if height > H or width > W:
            raise ValueError(
                f'data_samples[{i}].img_shape: expected a picture within its batch of {H} x {W} pixels, found '
                f'{height} x {width}; some transform of the pipeline changes the picture and not its img_shape'
            )
