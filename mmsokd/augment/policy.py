"""The augmentation policy: what is learned, and how a mini-batch's operations are drawn from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from mmengine.dist import broadcast, get_rank
from torch import Tensor, nn

from mmsokd.augment.feature_ops import FEATURE_OPS, Randomness
from mmsokd.relax import PROBABILITY_MARGIN, bernoulli_scores, categorical_scores

SUB_POLICIES = list(combinations(FEATURE_OPS, 2))  # the unordered pairs of distinct operations: C(9, 2) = 36


@dataclass(frozen=True)
class Draw:
    """One draw, a value that can be printed and replayed. B is 1 for the whole batch, or N for one a sample.

    ``chi`` holds leaves with a gradient while the policy is searched; they live as long as this draw.
    """

    choice: Tensor  # (B,) sub-policy
    gates: Tensor  # (B, 36, 2) whether each operation would fire, 0 or 1
    magnitudes: Tensor  # (B, 2) levels of the sub-policy's operations, in [0, 1]
    uniforms: tuple[Tensor, Tensor]  # (B, 36) and (B, 36, 2), behind choice and gates
    seed: int  # of the operations' own randomness, independent of the uniforms
    chi: Mapping[str, Tensor] | None = None

    def __str__(self) -> str:
        rows = []
        for choice, fires, levels in zip(self.choice.tolist(), self.fires.tolist(), self.magnitudes, strict=True):
            pairs = zip(SUB_POLICIES[choice], fires, levels.tolist(), strict=True)
            rows.append(' + '.join(f'{op}({level:.2f}){"" if gate else " off"}' for op, gate, level in pairs))
        return '; '.join(rows)

    @property
    def fires(self) -> Tensor:
        """Whether each of the sub-policy's two operations fires (B, 2)."""
        return self.gates[torch.arange(len(self.choice)), self.choice]

    def randomness(self, feat: Tensor, noise: bool) -> Randomness:
        """The operations' random numbers for a level: those of its siblings, and fresh noise if asked for.

        Drawn on the host, but for the noise, and sent without waiting.
        """
        n, c = feat.shape[:2]
        generator = torch.Generator().manual_seed(self.seed)
        centre = torch.rand(n, 2, generator=generator)
        order, chosen = torch.rand(c, generator=generator), torch.rand(c, generator=generator)
        keep = torch.rand(n, c, generator=generator)
        small = (x.to(feat.device, non_blocking=True) for x in (centre, order, chosen, keep))
        field = None
        if noise:
            device_generator = torch.Generator(feat.device).manual_seed(self.seed + 1)
            field = torch.randn(feat.shape, generator=device_generator, device=feat.device)
        return Randomness(*small, field)


class Seeded(nn.Module):
    """Draws that follow from the run's seed, which :class:`~mmsokd.hooks.SeedHook` tells.

    Args:
        shared: the same draws on all ranks.
    """

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.seed: int | None = None  # of the run; None: PyTorch's
        self.shared = shared
        self._shared_seed: int | None = None

    def _seed(self) -> int:
        """Of this rank, or the first rank's: MMEngine's ``diff_rank_seed`` gives each another."""
        own = torch.initial_seed() if self.seed is None else self.seed
        if not self.shared:
            return own + 1_000_003 * get_rank()
        if self._shared_seed is None:
            seed = torch.tensor(own % 2**63)
            broadcast(seed)
            self._shared_seed = int(seed)
        return self._shared_seed


class Policy(Seeded):
    """DADA's policy (arXiv 2003.03780) on feature operations [authors' fork].

    ``alpha`` (36,): logits of the sub-policies, ``beta`` (36, 2): probability that an operation fires, ``magnitude``
    (36, 2): its level. They are plain tensors on the host and no parameters: they decide which Python function runs, so
    on a device each draw would wait for it. The state dict carries them as one tensor.

    Args:
        shared: the same draws on all ranks.
    """

    def __init__(self, shared: bool = False) -> None:
        super().__init__(shared)
        k = len(SUB_POLICIES)
        self.alpha = torch.full((k,), 1e-3)
        self.beta = torch.full((k, 2), 0.5)
        self.magnitude = torch.full((k, 2), 0.5)
        self.salt = 0  # tells apart the draws of several policies in one model
        self.draws = 0  # the clock of the draws, so that a resumed run goes on with the same ones

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors, to be optimised in place."""
        return dict(alpha=self.alpha, beta=self.beta, magnitude=self.magnitude)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring probabilities and levels back into [0, 1] after a step."""
        self.beta.clamp_(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)  # beyond, a gate would have no gradient back
        self.magnitude.clamp_(0, 1)

    def sample(self, rows: int, chi: Mapping[str, Tensor] | None = None, advance: bool = True) -> Draw:
        """Draw ``rows`` sub-policies: Gumbel-max over log softmax(alpha), each operation's gate by a logistic draw.

        The random numbers depend on the seed, the rank (unless ``shared``) and how many draws were made before, and on
        nothing else; without ``advance`` the next call draws the same.
        """
        seed = (self._seed() + 104_729 * self.salt + 7_919 * self.draws) % 2**63
        self.draws += advance
        generator = torch.Generator().manual_seed(seed)
        u_choice = torch.rand(rows, len(self.alpha), generator=generator)
        u_gate = torch.rand(rows, len(self.alpha), 2, generator=generator)
        own = int(torch.randint(2**62, (), generator=generator))  # not `seed`: its numbers chose above
        choice = categorical_scores(self.alpha, u_choice).argmax(-1)
        gates = (bernoulli_scores(self.beta, u_gate) > 0).float()
        return Draw(choice, gates, self.magnitude[choice].clamp(0, 1), (u_choice, u_gate), own, chi)

    def entropy(self) -> float:
        """Of the choice among the sub-policies, in nats; log 36 = 3.58 at the start."""
        log_p = self.alpha.double().log_softmax(0)
        return float(-(log_p.exp() * log_p).sum())

    def expected_ops(self) -> dict[str, tuple[float, float]]:
        """Operation -> (probability that it fires in a draw, its mean level where it does)."""
        p = self.alpha.softmax(0)[:, None] * self.beta.clamp(0, 1)  # (36, 2)
        table = {}
        for op in FEATURE_OPS:
            mine = torch.tensor([[name == op for name in pair] for pair in SUB_POLICIES])
            chance = float(p[mine].sum())
            table[op] = (chance, float((p * self.magnitude)[mine].sum()) / max(chance, 1e-12))
        return table

    def get_extra_state(self) -> Tensor:
        """Everything as one tensor: MMEngine moves every value of a state dict with ``.cpu()``."""
        values = [self.alpha, self.beta, self.magnitude, torch.tensor([self.draws])]
        return torch.cat([value.flatten().double() for value in values])

    def set_extra_state(self, state: Tensor) -> None:
        """Copy into the live tensors, which an optimizer may hold."""
        sizes = [value.numel() for value in self.tensors().values()]
        with torch.no_grad():
            for own, value in zip(self.tensors().values(), state[:-1].cpu().split(sizes), strict=True):
                own.copy_(value.view_as(own))
        self.draws = int(state[-1])
