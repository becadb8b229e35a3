"""What the losses on logits share."""

from collections.abc import Sequence

from torch import Tensor

from mmsokd.checks import check_integer


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are logits (N, K) or (N, K, H, W) of one shape."""
    if student.shape != teacher.shape or student.dim() not in (2, 4):
        raise ValueError(
            f'expected logits (N, K) or (N, K, H, W) of one shape, found student {tuple(student.shape)}, teacher '
            f"{tuple(teacher.shape)}; give this term adapter=dict(type='mmsokd.ResizeAdapter') or tap another layer"
        )


def check_classes(key: str, channels: int | None) -> None:
    """Raise ValueError where a softmax would go over a single channel, and the loss be zero."""
    if channels is None:
        return
    check_integer(f'{key}.teacher_channels', channels, 1)
    if channels < 2:
        raise ValueError(f'{key}: expected at least 2 classes to choose from, found {channels} channel')


def anchors_of(key: str, channels: int, num_classes: int | None) -> int:
    """How many anchors a position's channels are of; 1 where ``num_classes`` is not given.

    Raises:
        ValueError: ``num_classes`` is no divisor of the channels, or less than two classes to choose from.
    """
    if num_classes is None:
        return 1
    check_integer(f'{key}.num_classes', num_classes, 2)
    anchors, rest = divmod(channels, num_classes)
    if rest:
        raise ValueError(
            f'{key}.num_classes: expected a divisor of the {channels} channels (anchors x classes), found {num_classes}'
        )
    return anchors


def check_feature_and_logits(key: str, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
    """Raise ValueError unless a term taps two levels, of which the last are logits of the same classes."""
    if len(student_channels) != 2 or student_channels[1] != teacher_channels[1]:
        raise ValueError(
            f'{key}: expected a feature and the output, of one number of classes on both sides, found channels '
            f'{[*student_channels]} of the student and {[*teacher_channels]} of the teacher; tap the layer before '
            "the head and, last, the output (tap=['backbone.layer4', 'head.fc'])"
        )


def check_feature(feature: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless ``feature`` is what a head could have made ``logits`` of."""
    dense = logits.dim() == 4
    if feature.dim() not in (2, 4) or (dense and feature.shape[2:] != logits.shape[2:]):
        raise ValueError(
            "expected a feature (N, C) or (N, C, H, W), and of the logits' size where they are dense, found "
            f'{tuple(feature.shape)} beside logits {tuple(logits.shape)}; tap another layer first'
        )


def divergence(log_teacher: Tensor, log_student: Tensor, dim: int = 1) -> Tensor:
    """``KL(teacher || student)`` over ``dim``, from log-probabilities: (N, K, ...) -> (N, ...)."""
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim)
