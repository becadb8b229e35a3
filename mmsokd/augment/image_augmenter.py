"""TST's learnable augmenter: 25 scalars that say how pictures are changed. Draw, then apply."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.dist import get_rank
from torch import Tensor, nn

from mmsokd.augment.image_ops import IMAGE_OPS
from mmsokd.augment.image_priors import load_priors
from mmsokd.augment.warping import Canvas, identity, warp
from mmsokd.checks import check_bool, check_choice, check_integer, check_positive
from mmsokd.registry import MODELS
from mmsokd.relax import bernoulli_scores

_GRADED = [name for name, op in IMAGE_OPS.items() if op.lo is not None]  # the eleven that have a magnitude
_NOTHING = 1e-4  # an operator at this gate changes a picture by less than a tenth of a grey level: it is left out


@dataclass(frozen=True)
class ImageDraw:
    """One draw for N pictures: a value that can be printed and replayed."""

    ops: tuple[str, ...]
    uniforms: Tensor  # (K,), behind the gates: one a batch
    signs: Tensor  # (N, K), -1 or 1
    centre: Tensor  # (N, 2), see Canvas

    def __str__(self) -> str:
        return ' + '.join(self.ops)


@MODELS.register_module()
class ImageAugmenter(nn.Module):
    r"""The augmenter of "Teaching What You Should Teach" (Shao et al., IJCAI 2023, arXiv 2212.05422).

    .. math:: \tilde x = x + \sum_k p_k (op_k(x, m_k) - x)

    over ``num_ops`` of the 14 operators, drawn without replacement and each applied *to the original picture*; ``p_k``
    is a relaxed Bernoulli draw, one a batch. Learned are 14 probability logits and 11 magnitude logits, all 0 at the
    start: probabilities and magnitudes of 0.5.

    Where annotations say where something is, the warping operators are combined as matrices,
    ``A = I + sum_k p_k (A_k - I)``, and one warp moves pictures, boxes and label maps together; the colours change
    before it [ours].

    The scalars are plain tensors on the host and no parameters, as SoKD's policy: they decide which Python function
    runs, and only the bursts of :class:`~mmsokd.hooks.TSTHook` move them. The state dict carries them as one tensor.

    Args:
        num_ops: operators a batch.
        temperature: of the relaxed Bernoulli draws.
        firing: ``'mended'`` [ours]: an operator fires with the probability sigmoid(logit). ``'released'``: that passes
            the sigmoid a second time, as in the authors' code, so that it stays within 0.5 and 0.73.
        prior: ``'exact'`` operators [ours], or ``'learned'``, the authors' networks that imitate them
            (:mod:`~mmsokd.augment.image_priors`).
        prior_checkpoint: what ``tools/fit_tst_priors.py`` wrote, for ``prior='learned'``.
        rgb: whether the network's pictures are RGB, and not BGR; a distiller asks its data preprocessor.
        ignore_index: label of what a warp brings in from outside of a label map; a distiller fills in its student's.

    Raises:
        ValueError, FileNotFoundError: an option is not valid.
    """

    def __init__(
        self,
        num_ops: int = 4,
        temperature: float = 0.05,
        firing: str = 'mended',
        prior: str = 'exact',
        prior_checkpoint: str | Path | None = None,
        rgb: bool = True,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_integer('ImageAugmenter.num_ops', num_ops, 1)
        if num_ops > len(IMAGE_OPS):
            raise ValueError(f'ImageAugmenter.num_ops: expected at most {len(IMAGE_OPS)}, found {num_ops}')
        check_positive('ImageAugmenter.temperature', temperature)
        check_choice('ImageAugmenter.firing', firing, ['mended', 'released'])
        check_choice('ImageAugmenter.prior', prior, ['exact', 'learned'])
        check_bool('ImageAugmenter.rgb', rgb)
        check_integer('ImageAugmenter.ignore_index', ignore_index)
        if (prior == 'learned') != (prior_checkpoint is not None):
            raise ValueError(
                'ImageAugmenter.prior_checkpoint: expected a file (tools/fit_tst_priors.py writes it) beside '
                f"prior='learned' and none beside 'exact', found {prior_checkpoint!r} beside {prior!r}"
            )
        self.num_ops = num_ops
        self.temperature = temperature
        self.firing = firing
        self.rgb = rgb
        self.ignore_index = ignore_index
        self.ops = dict(IMAGE_OPS)
        if prior == 'learned':
            self.ops.update(load_priors('ImageAugmenter.prior_checkpoint', prior_checkpoint))
        self.probability = torch.zeros(len(IMAGE_OPS))
        self.magnitude = torch.zeros(len(_GRADED))
        self.draws = 0  # the clock of the draws, so that a resumed run goes on with the same ones

    def tensors(self) -> dict[str, Tensor]:
        """The live logits, to be optimised in place."""
        return dict(probability=self.probability, magnitude=self.magnitude)

    def sample(self, n: int) -> ImageDraw:
        """Draw for ``n`` pictures; the numbers depend on the seed, the rank and how many draws were made before."""
        seed = torch.initial_seed() + 1_000_003 * get_rank() + 7_919 * self.draws + 15_485_863  # not a policy's
        self.draws += 1
        generator = torch.Generator().manual_seed(seed % 2**63)
        chosen = torch.randperm(len(IMAGE_OPS), generator=generator)[: self.num_ops]
        names = list(IMAGE_OPS)
        uniforms = torch.rand(self.num_ops, generator=generator)
        signs = torch.randint(2, (n, self.num_ops), generator=generator) * 2.0 - 1
        centre = torch.rand(n, 2, generator=generator)
        return ImageDraw(tuple(names[i] for i in chosen.tolist()), uniforms, signs, centre)

    def firing_rates(self, chi: Mapping[str, Tensor] | None = None) -> Tensor:
        """With which probability each operator fires (14,), given that it is drawn."""
        rate = torch.sigmoid((chi or self.tensors())['probability'])
        return torch.sigmoid(rate) if self.firing == 'released' else rate

    def expected_ops(self) -> dict[str, tuple[float, float | None]]:
        """Operation -> (probability that it fires where it is drawn, its magnitude in [0, 1] or None)."""
        rates, levels = self.firing_rates().tolist(), self.magnitude.sigmoid().tolist()
        levels = dict(zip(_GRADED, levels, strict=True))
        return {name: (rate, levels.get(name)) for name, rate in zip(IMAGE_OPS, rates, strict=True)}

    def forward(
        self,
        x: Tensor,
        draw: ImageDraw,
        shapes: list[tuple[int, int]] | None = None,
        together: bool = False,
        chi: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Canvas]:
        """Change pictures.

        Args:
            x: (N, 3, H, W) in [0, 1].
            draw: for N pictures.
            shapes: height and width of each picture; the whole of (H, W) by default.
            together: combine what warps as matrices.
            chi: leaves on the host to learn by, in the place of :meth:`tensors`.

        Returns:
            The pictures; the map (N, 2, 3), without a graph, by which boxes and labels follow, None where nothing was
            moved ``together``; where the pictures lie.

        Raises:
            ValueError: ``x`` has no three channels.
        """
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f'ImageAugmenter: expected pictures (N, 3, H, W), found {tuple(x.shape)}')
        canvas = Canvas.of(x, shapes or [tuple(x.shape[2:])] * len(x), draw.centre)
        learning = chi is not None
        chi = chi or self.tensors()
        gates = self._gates(chi, draw)
        fires = [learning or gate > _NOTHING for gate in gates.tolist()]  # on the host: what does not fire is not run
        small = (gates, chi['magnitude'].sigmoid(), draw.signs)
        gates, levels, signs = (value.to(x.device, x.dtype, non_blocking=True) for value in small)
        x = x if self.rgb else x.flip(1)
        change, still = torch.zeros_like(x), identity(len(x), x)
        matrix = still
        for k, name in enumerate(draw.ops):
            if not fires[k]:
                continue
            op = self.ops[name]
            v = op.strength(levels[_GRADED.index(name)], signs[:, k]) if name in _GRADED else None
            if together and op.warps:
                matrix = matrix + gates[k] * (op.function(v, canvas.size.to(v)) - still)
            else:
                change = change + gates[k] * (op.apply(x, v, canvas) - x)
        x, moved = x + change, matrix is not still
        x = warp(x, matrix, canvas) if moved else x
        return x if self.rgb else x.flip(1), matrix.detach() if moved else None, canvas

    def _gates(self, chi: Mapping[str, Tensor], draw: ImageDraw) -> Tensor:
        """``p_k`` (K,) on the host."""
        names = list(IMAGE_OPS)
        rates = self.firing_rates(chi)[[names.index(name) for name in draw.ops]]
        return torch.sigmoid(bernoulli_scores(rates, draw.uniforms) / self.temperature)

    def get_extra_state(self) -> Tensor:
        """Everything as one tensor: MMEngine moves every value of a state dict with ``.cpu()``."""
        values = [self.probability, self.magnitude, torch.tensor([self.draws])]
        return torch.cat([value.double() for value in values])

    def set_extra_state(self, state: Tensor) -> None:
        """Copy into the live tensors, which an optimizer may hold."""
        sizes = [value.numel() for value in self.tensors().values()]
        for own, value in zip(self.tensors().values(), state[:-1].cpu().split(sizes), strict=True):
            own.copy_(value)
        self.draws = int(state[-1])
