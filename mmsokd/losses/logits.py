"""What the losses on logits share."""

from torch import Tensor


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are logits (N, K) or (N, K, H, W) of one shape."""
    if student.shape != teacher.shape or student.dim() not in (2, 4):
        raise ValueError(
            f'expected logits (N, K) or (N, K, H, W) of one shape, found student {tuple(student.shape)}, teacher '
            f"{tuple(teacher.shape)}; give this term adapter=dict(type='mmsokd.ResizeAdapter') or tap another layer"
        )


def check_classes(key: str, channels: int | None) -> None:
    """Raise ValueError where a softmax would go over a single channel, and the loss be zero."""
    if channels is not None and channels < 2:
        raise ValueError(f'{key}: expected at least 2 classes to choose from, found {channels} channel')


def divergence(log_teacher: Tensor, log_student: Tensor, dim: int = 1) -> Tensor:
    """``KL(teacher || student)`` over ``dim``, from log-probabilities: (N, K, ...) -> (N, ...)."""
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim)
