"""SKD's learning simplifier: attention that makes the teacher's predictions simpler."""

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmsokd.checks import check_choice, check_integer
from mmsokd.registry import MODELS

LEAST = 4  # predictions, fewer of which are no company to attend to


@MODELS.register_module()
class LearningSimplifier(BaseModule):
    r"""What is added to the softened predictions ``u`` (after Yuan et al., SKD, arXiv:2305.10893).

    .. math:: \mathrm{MHSA}(\mathrm{LayerNorm}(W u))

    The abstract says that a simplifier with attention is trained beside the student; the form is ours. Attention goes
    over the predictions of the batch, each a token. Or it goes over the classes of each prediction: a token is then
    ``w u_k + e_k`` with a learned ``e_k``, since a number alone does not tell which class it is of.

    Args:
        num_classes: K.
        over: ``'samples'`` or ``'classes'``. The latter holds N x num_heads x K x K numbers.
        embed_dims: width of the tokens.
        num_heads: of the attention; divides ``embed_dims``.

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(
        self,
        num_classes: int,
        over: str = 'samples',
        embed_dims: int = 64,
        num_heads: int = 4,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_choice('LearningSimplifier.over', over, ('samples', 'classes'))
        for key, value in dict(num_classes=num_classes, embed_dims=embed_dims, num_heads=num_heads).items():
            check_integer(f'LearningSimplifier.{key}', value, 1)
        if embed_dims % num_heads:
            raise ValueError(
                f'LearningSimplifier.num_heads: expected a divisor of the {embed_dims} embed_dims, found {num_heads}'
            )
        self.over_classes = over == 'classes'
        self.num_heads = num_heads
        width = 1 if self.over_classes else num_classes
        self.embed = nn.Linear(width, embed_dims, bias=False)
        self.place = nn.Parameter(torch.randn(num_classes, embed_dims)) if self.over_classes else None
        self.norm = nn.LayerNorm(embed_dims)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.out = nn.Linear(embed_dims, width)

    def forward(self, probs: Tensor, valid: Tensor | None = None) -> Tensor:
        """(T, K) -> (T, K).

        Args:
            probs: softened predictions.
            valid: (T,), bool: which of them are there at all; the others are not attended to. Over the samples the
                result is zero where fewer than four are.
        """
        if self.over_classes:
            return self._attend(self.embed(probs[..., None]) + self.place)[..., 0]
        valid = torch.ones_like(probs[:, 0], dtype=torch.bool) if valid is None else valid
        enough = valid.sum() >= LEAST
        change = self._attend(self.embed(probs)[None], valid | ~enough)[0]  # a softmax over nothing has no value
        return torch.where(enough, change, torch.zeros_like(change))

    def _attend(self, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
        """Self-attention (B, L, D) -> (B, L, width) to the ``keys`` (L,), bool."""
        q, k, v = self.qkv(self.norm(tokens)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if keys is None else keys.expand(len(tokens), 1, len(keys), len(keys))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, L, D / heads)
        return self.out(found.transpose(1, 2).flatten(2))
