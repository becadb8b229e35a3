"""What a term asks of its loss."""

from typing import ClassVar

from torch import nn


class TermLoss(nn.Module):
    """Base of the losses: ``forward(student, teacher)`` compares one level and gives an unweighted scalar.

    A term builds one loss a level and calls it in fp32 with the adapted student and the teacher, whose graph the
    distiller has cut. The class attributes say what else it takes. Arguments of ``__init__`` named ``student_channels``
    (after the adapter) and ``teacher_channels`` are filled in from the dry run where the config leaves them out.

    Attributes:
        same_channels: both sides need equal channels; a 1x1 adapter is inferred where they differ.
        same_size: both sides need maps of one size; SoKD's plug-ins do in any case.
        per_position: ``forward`` takes ``weight=`` (N, 1, H, W), SoKD's areas, as weights of the positions.
        on_logits: compares logits (N, K) or dense logits (N, K, H, W): no adapter is inferred, and SoKD's plug-ins
            leave them alone; ``refine=dict(at=...)`` reaches them through the teacher.
        wants_samples: ``forward`` takes ``samples=``, the batch's data samples, one a picture.
        default_adapter: registered name of an adapter that belongs to the method.
    """

    same_channels: ClassVar[bool] = False
    same_size: ClassVar[bool] = True
    per_position: ClassVar[bool] = False
    on_logits: ClassVar[bool] = False
    wants_samples: ClassVar[bool] = False
    default_adapter: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()  # nn.Module's own takes any argument, to refuse it later
