"""RCKA and PCKA: what is alike to the teacher, pictures, classes or patches, by centred kernel alignment."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsokd.checks import check_integer, check_maps, check_number
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.logits import check_classes, check_logits
from mmsokd.registry import MODELS

EPS = 1e-8  # rows that differ by a smaller root mean square count as equal


@in_fp32
def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear centred kernel alignment (Kornblith et al., CKA, arXiv:1905.00414, sec. 3).

    .. math:: \frac{\langle X X^T, Y Y^T \rangle}{\| X X^T \| \, \| Y Y^T \|}
        = \frac{\| Y^T X \|^2}{\| X^T X \| \, \| Y^T Y \|}

    where each column of X and Y has mean 0. Of both forms the one with the smaller matrices is computed.

    Args:
        x, y: (..., n, p) and (..., n, q): the same things, one a row.

    Returns: (...), in [0, 1]; 1 iff the rows lie to each other alike, up to scale. It is 0, without a gradient, where
        the rows of a side are all equal [ours], as a single row is, and 1, without a gradient, of two rows that differ.
    """
    x, y = _centred(x), _centred(y)
    is_wide = x.shape[-2] <= x.shape[-1]
    products = [z @ z.mT if is_wide else z.mT @ z for z in (x, y)]
    common = products[0] * products[1] if is_wide else (y.mT @ x).square()
    lengths = [torch.linalg.vector_norm(product, dim=(-2, -1)) for product in products]
    both = lengths[0] * lengths[1]
    return common.sum((-2, -1)) / torch.where(both > 0, both, 1.0)


def _centred(x: Tensor) -> Tensor:
    """(..., n, p) less its mean row, of root mean square 1; zeros where all rows are equal but for rounding."""
    centred = x - x.mean(-2, keepdim=True)
    with torch.no_grad():  # CKA does not depend on the scale, so that none of its gradient is lost
        square = centred.square().mean((-2, -1), keepdim=True)
        varies = square > EPS**2 + 1e-12 * x.square().mean((-2, -1), keepdim=True)
    return centred * square.where(varies, torch.inf).rsqrt()


@in_fp32
def rcka_loss(student: Tensor, teacher: Tensor, picture_weight: float = 1.0, class_weight: float = 1.0) -> Tensor:
    r"""One minus the CKA of the pictures' logits, and of the classes' (Zhou et al., RCKA, arXiv:2401.11824).

    .. math:: w_p\, (1 - \mathrm{CKA}(S, T)) + w_c\, (1 - \mathrm{CKA}(S^T, T^T))

    with :func:`linear_cka`, and a picture's logits in a row of S and T. The authors' code leaves the centring out,
    divides row i of a Gram matrix by the root of its diagonal element, gives both parts one weight and, by default,
    leaves the second out. Each position of dense logits is a row of its own [ours].

    Args:
        student, teacher: logits (N, K) or (N, K, H, W). The distiller hands the teacher over without a graph.
        picture_weight, class_weight: of the two parts.

    Returns: scalar in [0, picture_weight + class_weight], but for rounding. Of less than three pictures the first part
        has no gradient, of less than three classes the second has none.

    Raises:
        ValueError: the shapes differ, or are none of these.
    """
    check_logits(student, teacher)
    s, t = (x.movedim(1, -1).flatten(0, -2) for x in (student, teacher))  # (N, K), or (N H W, K)
    return picture_weight * (1 - linear_cka(s, t)) + class_weight * (1 - linear_cka(s.mT, t.mT))


@in_fp32
def pcka_loss(student: Tensor, teacher: Tensor, patch_size: int = 16) -> Tensor:
    r"""One minus the CKA of a channel's patches, averaged over the channels (Zhou et al., PCKA, arXiv:2401.11824).

    .. math:: 1 - \frac{1}{C} \sum_c \mathrm{CKA}(P_s^c, P_t^c)

    with :func:`linear_cka`. As in the authors' code, but for the centring, which it leaves out: a map is cut into
    patches without overlap, after bilinear scaling to the next multiple of ``patch_size`` where a side is none, and a
    row of P has the patch of one place in all pictures of the batch. It holds at most C P^2 numbers a side, for P
    patches a map.

    Args:
        student, teacher: features (N, C, H, W) of one shape. The distiller hands the teacher over without a graph.
        patch_size: side of a patch, in cells.

    Returns: scalar in [0, 1]. It has no gradient for maps of one patch, where it is 1, and of two.

    Raises:
        ValueError: they are no maps of one shape.
    """
    check_maps(student, teacher)
    return (1 - linear_cka(_patches(student, patch_size), _patches(teacher, patch_size))).mean()


def _patches(feat: Tensor, side: int) -> Tensor:
    """(N, C, H, W) -> (C, P, N side^2), a patch of the map a row."""
    n, c, h, w = feat.shape
    rows, columns = -(-h // side), -(-w // side)
    size = rows * side, columns * side
    if size != (h, w):
        feat = F.interpolate(feat, size, mode='bilinear', align_corners=False)
    cut = feat.reshape(n, c, rows, side, columns, side).permute(1, 2, 4, 0, 3, 5)
    return cut.reshape(c, rows * columns, n * side**2)


@MODELS.register_module()
class RCKALoss(TermLoss):
    """:func:`rcka_loss` as a term's loss. Take a ``loss_weight`` that grows to 1, ``[(0.0, 0.0), (0.25, 1.0)]``.

    The gradient goes with one over the scale of the student's logits, which is small at first: a weight that is large
    from the start drowns the student's own loss. The authors' code, which does not centre, has 15 for either part.

    Args:
        picture_weight, class_weight: of the two parts.
        teacher_channels: K; the distiller fills it in.

    Raises:
        ValueError: a weight is negative, or there is a single class.
    """

    same_channels = True
    on_logits = True
    ranks = (2, 4)

    def __init__(
        self, picture_weight: float = 1.0, class_weight: float = 1.0, teacher_channels: int | None = None
    ) -> None:
        super().__init__()
        check_number('RCKALoss.picture_weight', picture_weight)
        check_number('RCKALoss.class_weight', class_weight)
        check_classes('RCKALoss', teacher_channels)
        self.picture_weight = picture_weight
        self.class_weight = class_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`rcka_loss`."""
        return rcka_loss(student, teacher, self.picture_weight, self.class_weight)


@MODELS.register_module()
class PCKALoss(TermLoss):
    """:func:`pcka_loss` as a term's loss. Take a ``loss_weight`` of 10, as the authors' code does on each FPN level.

    SoKD's areas are not used as weights: a patch has no place of its own in a Gram matrix of all patches.

    Args:
        patch_size: side of a patch, in cells. A level teaches nothing while it has less than three patches (at 16 a
            side of the map must be above 32, or both above 16), and little while it has few: few points of many
            numbers lie alike by chance. Of white noise on 25 x 42 cells, six patches, the loss is 0.02 and not 1.

    Raises:
        ValueError: ``patch_size`` is no integer >= 1.
    """

    same_channels = True
    ranks = (4,)

    def __init__(self, patch_size: int = 16) -> None:
        super().__init__()
        check_integer('PCKALoss.patch_size', patch_size, least=1)
        self.patch_size = patch_size

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`pcka_loss`."""
        return pcka_loss(student, teacher, self.patch_size)
