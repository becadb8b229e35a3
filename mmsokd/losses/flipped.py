"""The student's task losses turned round, for TST's search of pictures that the student does not know.

After "Teaching What You Should Teach", arXiv 2212.05422: softmax cross-entropy becomes ``-log(1 - p + 1e-8)``, in
binary cross-entropy the targets are swapped, in focal loss ``p`` becomes ``1 - p``, and L1 and GIoU are negated.

Ours is that every element has an end. Binary and focal ones have softmax's, ``-log 1e-8 = 18.4``: their logits are
bounded at both ends. The negated ones are ``c - min(loss, c)``, which for GIoU is ``1 + giou``.

Ours is also that of binary and focal losses which are no mean over their elements, but have a divisor of the head's,
only the objects are turned round. A dense detector's divisor is the number of its positive anchors, which is fair to
the plain loss: of a hundred thousand background anchors each is next to nothing. Turned round each is at its largest,
and they alone would decide what a burst does: pictures whose background the student is less sure of.

A detector's heads call their loss modules with targets that they alone can make. So the modules stay where they are,
and for a while compute something else: no head and no distiller need know of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmsokd.checks import nearest
from mmsokd.losses.base import in_fp32

_EPS = 1e-8
_FAR = 50.0  # a logit so low that its element of a loss is 0


@in_fp32
def flipped_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    r"""``-log(1 - p_y + 1e-8)``, element by element: at most 18.4, so that a sure student cannot rule the sum.

    Args:
        logits: (N, K) or (N, K, H, W).
        target: classes (N,) or (N, H, W); or their shares (N, K), of which it gives the mean.
        ignore_index: class of what counts as 0.

    Returns: (N,) or (N, H, W).
    """
    log_p = logits.log_softmax(1)
    wrong = -torch.log(-torch.expm1(log_p) + _EPS)  # 1 - p without losing digits where p is near 1
    if target.is_floating_point():
        return (target * wrong).sum(1)
    valid = target != ignore_index
    chosen = wrong.gather(1, torch.where(valid, target, 0)[:, None]).squeeze(1)
    return chosen * valid


@in_fp32
def flipped_logit(logits: Tensor) -> Tensor:
    """The logit of ``1 - p``, where both ``p`` and ``1 - p`` are kept from 0 by 1e-8; so its logarithms are bounded."""
    end = logits.new_tensor(_EPS).log()
    return -torch.logaddexp(-torch.logaddexp(-logits, end), end)


def bounded_negative(loss: Tensor, bound: float) -> Tensor:
    """``bound - min(loss, bound)``: falls as the loss rises, and stays >= 0."""
    return bound - loss.clamp(max=bound)


# ---- twins of the libraries' loss modules: the module, its own forward, and what the head calls it with -------------


def _cross_entropy(
    module: nn.Module,
    forward: Callable,
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    avg_factor: Any = None,
    reduction_override: str | None = None,
    ignore_index: int | None = None,
    **kwargs: Any,
) -> Tensor:
    if getattr(module, 'use_mask', False):  # a binary mask of each box, in the channel of its class, which is `weight`
        return forward(flipped_logit(pred), label, weight, avg_factor, reduction_override, **kwargs)
    own = getattr(module, 'ce', module)  # LabelSmoothLoss's, which has no class without a share
    reduction = reduction_override or module.reduction
    of_objects = own is module and not _is_mean(reduction, avg_factor)
    given = {} if ignore_index is None else dict(ignore_index=ignore_index)
    if ignore_index is None:
        ignore_index = getattr(module, 'ignore_index', None)
    ignore_index = -100 if ignore_index is None else ignore_index
    if avg_factor is None and reduction == 'mean' and not label.is_floating_point():
        # Over what is labelled: a warp brings in more of what is not.
        avg_factor = ((label != ignore_index) & (label >= 0)).sum().clamp(min=1)
        if own.use_sigmoid:  # a mean over the classes too, as the task loss
            avg_factor = avg_factor * (pred.numel() // max(label.numel(), 1))
    if own.use_sigmoid:
        given.update(weight=weight, avg_factor=avg_factor, reduction_override=reduction_override, **kwargs)
        logits = flipped_logit(pred)
        return forward(_of_objects(logits, label) if of_objects else logits, label, **given)
    loss = flipped_cross_entropy(pred, label, ignore_index)
    if own.class_weight is not None and not label.is_floating_point():
        loss = loss * pred.new_tensor(own.class_weight)[label.clamp(0, pred.shape[1] - 1)]
    return module.loss_weight * _reduce(loss, weight, avg_factor, reduction)


def _focal(
    module: nn.Module,
    forward: Callable,
    pred: Tensor,
    target: Any,
    weight: Tensor | None = None,
    avg_factor: Any = None,
    reduction_override: str | None = None,
    **kwargs: Any,
) -> Tensor:
    """A function of ``p = sigmoid(x)``: ``p -> 1 - p``, which is ``x -> -x``."""
    is_p = getattr(module, 'activated', False)
    turned = (1 - pred).clamp(_EPS, 1 - 1e-7) if is_p else flipped_logit(pred)  # no fp32 is nearer to 1
    if not _is_mean(reduction_override or module.reduction, avg_factor):
        turned = _of_objects(turned, target, 0.0 if is_p else -_FAR)
    return forward(turned, target, weight, avg_factor, reduction_override, **kwargs)


def _is_mean(reduction: str, avg_factor: Any) -> bool:
    """Over all elements, and not divided by a number of the head's, now or later."""
    return reduction == 'mean' and avg_factor is None


def _of_objects(pred: Tensor, target: Tensor | tuple[Tensor, Tensor], nothing: float = -_FAR) -> Tensor:
    """``pred`` (N, K, ...), and where there is no object of a class ``nothing``, which costs nothing there.

    Args:
        target: of the shape of ``pred``, 0 where there is none; or classes (N, ...), of which K and more are none; or
            these with their qualities, of which they are the first.
    """
    target = target[0] if isinstance(target, (tuple, list)) else target
    if target.shape == pred.shape:
        there = target > 0
    else:
        classes = torch.arange(pred.shape[1], device=pred.device).view(-1, *[1] * (pred.dim() - 2))
        there = target.unsqueeze(1) == classes
    return torch.where(there, pred, nothing)


def _bounded(
    module: nn.Module,
    forward: Callable,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: Any = None,
    reduction_override: str | None = None,
    *,
    bound: float,
    **kwargs: Any,
) -> Tensor:
    if pred.numel() == 0 or module.loss_weight == 0:
        return pred.sum() * 0.0
    loss = bounded_negative(forward(pred, target, reduction_override='none', **kwargs) / module.loss_weight, bound)
    if weight is not None and weight.dim() > loss.dim():  # (n, 4) beside one loss a box
        weight = weight.mean(-1)
    return module.loss_weight * _reduce(loss, weight, avg_factor, reduction_override or module.reduction)


def _reduce(loss: Tensor, weight: Tensor | None, avg_factor: Any, reduction: str) -> Tensor:
    """As the libraries' ``weight_reduce_loss`` does."""
    loss = loss if weight is None else loss * weight
    if reduction == 'none':
        return loss
    if reduction == 'sum':
        return loss.sum()
    return loss.mean() if avg_factor is None else loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)


# By the names that mmdet, mmseg and mmpretrain register. The bounds are ours; of GIoU and DIoU they are their own.
TWINS: dict[str, Callable] = {
    'CrossEntropyLoss': _cross_entropy,
    'LabelSmoothLoss': _cross_entropy,  # of the hard label; with a sigmoid, of the smoothed ones
    'FocalLoss': _focal,
    'QualityFocalLoss': _focal,
    'L1Loss': partial(_bounded, bound=1.0),
    'SmoothL1Loss': partial(_bounded, bound=1.0),
    'IoULoss': partial(_bounded, bound=2.0),
    'GIoULoss': partial(_bounded, bound=2.0),
    'DIoULoss': partial(_bounded, bound=2.0),
    'CIoULoss': partial(_bounded, bound=2.0),
    'DistributionFocalLoss': partial(_bounded, bound=2.0),
}


def task_losses(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> the outermost loss modules of a model of mmdet, mmseg or mmpretrain.

    Raises:
        ValueError: it has none, or one that has no twin; names it and the nearest that has.
    """
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f'{outer}.') for outer in found)
        if '.losses.' in f'{type(module).__module__}.' and not inside:
            found[path] = module
    if not found:
        raise ValueError(
            'expected a student with loss modules, such as CrossEntropyLoss, to be turned round, found none'
        )
    for path, module in found.items():
        name = type(module).__name__
        is_soft = name == 'LabelSmoothLoss' and module.mode == 'multi_label'
        if name not in TWINS or is_soft:
            raise ValueError(
                f'student.{path}: expected one of the losses {list(TWINS)}, that can be turned round, found {name}; '
                f'nearest: {nearest(name, TWINS, n=1)}'
            )
    return found


@contextmanager
def flipped(model: nn.Module, factor: float = 1.0) -> Iterator[None]:
    """Within the block the model's loss modules are turned round: its ``loss`` mode rewards being wrong.

    Args:
        model: of mmdet, mmseg or mmpretrain.
        factor: of all of them, see :func:`left_as_they_are`.

    Raises:
        ValueError: as :func:`task_losses` does.
    """
    modules = list(task_losses(model).values())
    own = [vars(module).get('forward') for module in modules]
    try:
        for module in modules:
            module.forward = partial(_turned, module, module.forward, factor)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            vars(module).pop('forward', None)
            if forward is not None:  # somebody else's wrapping
                module.forward = forward


def _turned(module: nn.Module, forward: Callable, factor: float, *args: Any, **kwargs: Any) -> Tensor:
    return factor * TWINS[type(module).__name__](module, forward, *args, **kwargs)


def left_as_they_are(model: nn.Module, losses: Callable[[], Mapping[str, Tensor]]) -> list[str]:
    """Names of the losses that are no sums of what the model's loss modules give; some heads compute one by themselves.

    A sum of turned-round losses doubles as each of them does. Where a loss is 0, such as one of boxes on pictures
    without any, nothing is seen.

    Args:
        model: of mmdet, mmseg or mmpretrain.
        losses: of one batch, always the same, each a scalar.
    """
    found = []
    for factor in (1.0, 2.0):
        with torch.random.fork_rng(), flipped(model, factor):  # what is sampled is the same
            torch.manual_seed(0)
            found.append({name: loss.detach().float() for name, loss in losses().items() if 'loss' in name})
    once, twice = found
    wrong = [name for name in once if not torch.isclose(2 * once[name], twice[name], rtol=1e-2, equal_nan=True)]
    return [name for name in wrong if name != 'loss'] or wrong  # the last is the others' sum, where there are any
