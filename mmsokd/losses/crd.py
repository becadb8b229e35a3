"""Contrastive representation distillation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.checks import check_integer, check_positive, check_range
from mmsokd.losses.base import TermLoss, in_fp32
from mmsokd.losses.pooling import pooled
from mmsokd.registry import MODELS


@in_fp32
def nce_loss(scores: Tensor, log_z: Tensor, num_samples: int) -> Tensor:
    r"""Noise-contrastive estimation of which key is the query's own (Tian et al., CRD, arXiv:1910.10699, sec. 3).

    .. math:: -\frac{1}{N} \sum_i \Big[ \log h_{i0} + \sum_{k=1}^K \log (1 - h_{ik}) \Big], \quad
        h = \frac{e^x / Z}{e^x / Z + K / M}

    Args:
        scores: ``x``, the similarities over the temperature (N, 1 + K); the own key comes first.
        log_z: logarithm of the normalising constant ``Z`` of Wu et al. (arXiv:1805.01978, sec. 3.2), as in the authors'
            code; the paper has none.
        num_samples: ``M``, among how many the K negatives are drawn.

    Returns: scalar >= 0.
    """
    logits = scores - log_z - math.log((scores.shape[1] - 1) / num_samples)  # the log-odds of h
    return -(F.logsigmoid(logits[:, 0]) + F.logsigmoid(-logits[:, 1:]).sum(1)).mean()


@MODELS.register_module()
class CRDLoss(TermLoss):
    r"""Contrasts each picture's student with the teacher's memory of all pictures, and the other way round.

    Both sides are averaged over the map, embedded by a linear layer (the teacher's learns too) and scaled to length 1.
    Each side has a bank that remembers one embedding a training picture. :func:`nce_loss` of a side looks in the
    other's bank for the picture's own among ``nce_k`` others, drawn uniformly and with replacement from the rest of the
    training set (the authors' code draws from pictures of other classes; this one does not look at classes). Z is
    estimated from the first batch and kept, as in their code. Both banks follow by ``bank <- normalize(momentum * bank
    + (1 - momentum) * embedding)``, in training mode only. Take a ``loss_weight`` of 0.8, as the benchmarks do.

    The banks are buffers: they are saved, resumed, and weigh 2 x ``num_samples`` x ``feat_dim`` x 4 bytes (1.3 GB for
    ImageNet); a step holds a copy of them, or of the rows drawn where those are fewer. Under DDP every rank gathers all
    embeddings, so that the ranks' banks stay one; batches must then have equal sizes on all ranks, as MMEngine's
    samplers make them. Under mixup or cutmix a picture's row remembers the mixture that it comes first in [ours].

    Args:
        student_channels, teacher_channels: widths of both sides; the term fills them in.
        num_samples: pictures in the training set. Pictures are known by ``sample_idx`` in their data sample, which
            mmpretrain's ``PackInputs`` puts there; ``PackDetInputs`` and ``PackSegInputs`` need it among their
            ``meta_keys``. ``ConcatDataset`` counts each part from 0 and cannot be used.
        feat_dim: width of the embeddings.
        nce_k: negatives a picture.
        temperature: of the similarities, > 0.
        momentum: of the banks, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    same_size = False
    ranks = (2, 4)
    wants_samples = True

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_samples: int,
        feat_dim: int = 128,
        nce_k: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        for key, value, least in (('num_samples', num_samples, 2), ('feat_dim', feat_dim, 1), ('nce_k', nce_k, 1)):
            check_integer(f'CRDLoss.{key}', value, least)
        check_positive('CRDLoss.temperature', temperature)
        check_range('CRDLoss.momentum', momentum, 0, 1)
        self.num_samples = num_samples
        self.nce_k = nce_k
        self.temperature = temperature
        self.momentum = momentum
        self.student_embedding = nn.Linear(student_channels, feat_dim)
        self.teacher_embedding = nn.Linear(teacher_channels, feat_dim)
        self.register_buffer('student_bank', F.normalize(torch.randn(num_samples, feat_dim)))
        self.register_buffer('teacher_bank', F.normalize(torch.randn(num_samples, feat_dim)))
        self.register_buffer('log_z', torch.zeros(2))  # of both sides' scores
        self.register_buffer(
            'has_z', torch.tensor(False)
        )  # beside it, since a checkpoint may hold finite numbers alone

    @in_fp32
    def forward(self, student: Tensor, teacher: Tensor, samples: Sequence[Any] | None = None) -> Tensor:
        """The sum of both sides' :func:`nce_loss`.

        Args:
            student, teacher: (N, C) or (N, C, H, W) and (N, C', ...).
            samples: one a picture, with ``sample_idx``.

        Raises:
            ValueError: a sample has no ``sample_idx``, or one that is not below ``num_samples``.
        """
        index = torch.tensor(self._indices(samples)).to(student.device, non_blocking=True)
        student = F.normalize(self.student_embedding(pooled(student)))
        teacher = F.normalize(self.teacher_embedding(pooled(teacher)))
        keys = self._draw(index)
        scores = torch.stack(
            [self._score(student, self.teacher_bank, keys), self._score(teacher, self.student_bank, keys)]
        )
        log_z = self._normalizers(scores)
        if self.training:
            self._remember(student, teacher, index, log_z)
        return sum(nce_loss(x, c, self.num_samples) for x, c in zip(scores, log_z, strict=True))

    def _indices(self, samples: Sequence[Any] | None) -> list[int]:
        """On the host, where the loader made them: a look at the device would wait for it."""
        found = [sample.get('sample_idx') for sample in samples or []]
        if not found or any(index is None for index in found):
            raise ValueError(
                "CRDLoss: expected 'sample_idx' in each data sample, found none; add it to the 'meta_keys' of the "
                "pipeline's PackInputs, PackDetInputs or PackSegInputs"
            )
        for index in found:
            if not 0 <= index < self.num_samples:
                raise ValueError(
                    f'CRDLoss.num_samples: expected the size of the training set, found {self.num_samples} and a '
                    f'picture of sample_idx {index}'
                )
        return found

    def _draw(self, index: Tensor) -> Tensor:
        """Each picture's own index and, behind it, those of its negatives: (N, 1 + K)."""
        own = index[:, None]
        others = torch.randint(self.num_samples - 1, (len(index), self.nce_k), device=index.device)
        return torch.cat([own, others + (others >= own)], 1)  # the picture itself is jumped over

    def _score(self, query: Tensor, bank: Tensor, keys: Tensor) -> Tensor:
        """Similarities of the queries (N, D) with their keys (N, 1 + K), over the temperature."""
        # Either way a copy is kept for the backward, since the bank changes before it: the smaller one. For 32 pictures
        # of ImageNet the rows are 0.27 GB, the bank and all its products 0.82 GB; for 64 of CIFAR 0.54 and 0.04 GB.
        if keys.numel() < len(bank):
            products = (bank[keys] @ query[..., None])[..., 0]
        else:
            products = (query @ bank.clone().t()).gather(1, keys)
        return products / self.temperature

    def _normalizers(self, scores: Tensor) -> Tensor:
        """Log Z of both sides: of ``M`` times the mean of ``exp(x)``, of the first batch."""
        # Estimated in each step, since only the buffer tells which is the first: a flag on the host would outlive its
        # restoring, as after the extra passes of the policy's search.
        own = scores.detach().logsumexp((1, 2))
        estimates = torch.stack(all_gather(own) if self.training else [own])  # (ranks, 2)
        mean = estimates.logsumexp(0) - math.log(len(estimates) * scores[0].numel())
        return torch.where(self.has_z, self.log_z, mean + math.log(self.num_samples))

    @torch.no_grad()
    def _remember(self, student: Tensor, teacher: Tensor, index: Tensor, log_z: Tensor) -> None:
        """Keep Z, and move the banks' rows of the batch towards its embeddings, in place."""
        self.log_z.copy_(log_z)
        self.has_z.fill_(True)
        index = torch.cat(all_gather(index))
        first = (index[:, None] == index).int().argmax(1)  # of the places where the same picture stands
        for bank, embedding in ((self.student_bank, student), (self.teacher_bank, teacher)):
            # Of a picture that the batch holds twice the first embedding counts, lest the ranks' banks part.
            embedding = torch.cat(all_gather(embedding.detach()))[first]
            bank[index] = F.normalize(self.momentum * bank[index] + (1 - self.momentum) * embedding)
