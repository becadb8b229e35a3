"""SoKD's two plug-ins as the distiller sees them.

`refine`: what the teacher's feature becomes; `areas`: where it counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleDict, ModuleList
from torch import Tensor
from torch.nn import functional as F

from mmsokd.distillers.parts import build_part
from mmsokd.distillers.term import STUDENT, Term
from mmsokd.registry import MODELS
from mmsokd.taps import FeatureSpec, Probe, match_levels

_SHARED = 'shared'


class Refiner(BaseModule):
    """The augmentation policy, or one a term, and the adapter that ``at`` needs.

    Args:
        cfg: config of a :class:`~mmsokd.augment.FeatureAugmentationNeck`.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        self._cfg = cfg
        self.necks = ModuleDict({_SHARED: build_part('refine', cfg)})

    @property
    def at(self) -> str | None:
        """The teacher's layer whose output is replaced, or None: each term's own feature is refined beside it."""
        return next(iter(self.necks.values())).at

    def connect(self, terms: Mapping[str, Term], probes: Mapping[str, Probe]) -> None:
        """Choose the terms that are refined, and build what depends on the dry runs, of the student and the teachers.

        Raises:
            ValueError: ``at`` with several teachers, with ``per_term``, or at levels that do not match; or there is
                nothing to refine.
        """
        neck = self.necks[_SHARED]
        if self.at is not None:
            if neck.per_term:
                raise ValueError("refine.per_term: expected False beside 'at' (one layer, one policy), found True")
            teachers = sorted(set(probes) - {STUDENT})
            if len(teachers) != 1:
                raise ValueError(f'refine.at: expected one teacher, found {teachers}')
            teacher = probes[teachers[0]]
            self._check_at(terms, teacher)
            self._connect_at(probes[STUDENT].specs[self.at], teacher.specs[self.at])
            self.names: list[str] = []
            return
        self.names = [name for name, term in terms.items() if term.wants_refine and term.is_feature]
        if not self.names:
            raise ValueError(
                "refine: expected a term that compares features (N, C, H, W), found none; give refine=dict(at='...') "
                'to refine a layer of the teacher from which its logits follow, or refine=None'
            )
        if neck.per_term:
            self.necks = ModuleDict({name: build_part('refine', self._cfg) for name in self.names})
            for salt, neck in enumerate(self.necks.values()):
                neck.policy.salt = salt

    def _check_at(self, terms: Mapping[str, Term], teacher: Probe) -> None:
        followers = {
            name: term
            for name, term in terms.items()
            if term.teacher_name != STUDENT and not teacher.precedes(term.teacher_tap, self.at)
        }
        stubborn = [name for name, term in followers.items() if not term.wants_refine]
        if stubborn:
            raise ValueError(
                f"terms.{stubborn[0]}.refine: expected True beside refine.at='{self.at}', found False: the "
                'teacher runs once, and what lies behind that layer follows it for every term'
            )
        if not followers:
            taps = [term.teacher_tap for term in terms.values() if term.teacher_name != STUDENT]
            raise ValueError(
                f"refine.at: expected a term that taps the teacher at or behind '{self.at}', found only {taps}, "
                'which it would not change'
            )
        if teacher.calls.get(self.at) != 1:
            raise ValueError(
                'refine.at: expected a layer of the teacher that gives its whole output in one call, without an '
                f"index, such as 'backbone.layer3', found '{self.at}'"
            )

    def _connect_at(self, student: Sequence[FeatureSpec], teacher: Sequence[FeatureSpec]) -> None:
        self.pairs = match_levels(student, teacher)
        sizes = [(student[i].size, teacher[j].size) for i, j in self.pairs or []]
        tokens = any(spec.extra is not None for spec in (*student, *teacher))
        if not sizes or tokens or any(s != t or len(s) != 2 for s, t in sizes):
            raise ValueError(
                f'refine.at: expected a layer of maps of one stride in both networks, found sizes '
                f"{[s.size for s in student]} and {[t.size for t in teacher]} at '{self.at}'"
            )
        # L_aug needs the student in the teacher's width [ours: a 1x1 regressor that learns beside, and gives the
        # student no gradient, so that the host stays what it is].
        self.regressors = ModuleList(
            MODELS.build(
                dict(type='mmsokd.ConvAdapter', in_channels=student[i].channels, out_channels=teacher[j].channels)
            )
            for i, j in self.pairs
        )

    def begin(self, inputs: Tensor) -> 'RefineStep':
        """Draw for one step on the batch ``inputs``."""
        return RefineStep(self, inputs)


class RefineStep:
    """One step's draws and what was refined with them; lives as long as the step."""

    def __init__(self, refiner: Refiner, inputs: Tensor) -> None:
        self._refiner = refiner
        self._draws = {name: neck.sample(len(inputs), inputs.device) for name, neck in refiner.necks.items()}
        self._done: dict[tuple, list[Tensor]] = {}
        self._objectives: dict[str, list[Tensor]] = {name: [] for name in self._draws}
        self._ratios: list[Tensor] = []
        self._replaced: list[Tensor] | None = None

    def refine(self, name: str, source: tuple, feats: list[Tensor], target: list[Tensor]) -> list[Tensor]:
        """``F~_t`` for the term ``name``.

        Args:
            name: the term.
            source: where ``feats`` come from: terms that share it, and the policy, share the refined feature.
            feats: the teacher's levels.
            target: ``Phi_s(F_s)``, to which the policy draws the teacher.

        Returns:
            The refined levels, without a graph to the policy except in the unrolled search.
        """
        policy = name if name in self._draws else _SHARED
        neck = self._refiner.necks[policy]
        key = (policy, *source)
        if key not in self._done:
            self._done[key] = neck(feats, self._draws[policy])
            self._ratios.append(neck.norm_ratio(self._done[key], feats))
        refined = self._done[key]
        self._objectives[policy].append(neck.objective(refined, target))
        return refined if neck.is_exposed else [x.detach().to(f.dtype) for x, f in zip(refined, feats, strict=True)]

    def replace(self, output: Any) -> Any:
        """The output hook of the teacher's layer ``at``: its refined feature goes on through the network."""
        feats = [output] if isinstance(output, Tensor) else list(output)
        neck = self._refiner.necks[_SHARED]
        self._replaced = neck(feats, self._draws[_SHARED])
        self._ratios.append(neck.norm_ratio(self._replaced, feats))
        # A copy: the layer that follows may change its input in place.
        refined = [x.detach().to(f.dtype, copy=True) for x, f in zip(self._replaced, feats, strict=True)]
        return refined[0] if isinstance(output, Tensor) else type(output)(refined)

    def fit(self, student: Sequence[Tensor]) -> Tensor:
        """With ``at``: the regressors' own loss, MSE to ``F~_t`` from the detached student; records L_aug too."""
        refiner = self._refiner
        total = student[0].new_zeros((), dtype=torch.float32)
        if self._replaced is None:  # no term needed the teacher in this step; DDP still wants the parameters touched
            return total + sum(p.sum() * 0.0 for p in refiner.regressors.parameters())
        pairs = zip(refiner.regressors, refiner.pairs, strict=True)
        adapted = [regressor(student[i].detach()) for regressor, (i, _) in pairs]
        targets = [self._replaced[j] for _, j in refiner.pairs]
        neck = refiner.necks[_SHARED]
        self._objectives[_SHARED].append(neck.objective(targets, adapted))
        for a, t in zip(adapted, targets, strict=True):
            total = total + F.mse_loss(a.float(), t.detach().float())
        return total

    def finish(self) -> dict[str, Tensor]:
        """Hand the policies their gradient, if they are searched; the step's diagnostics."""
        stats = {}
        objectives = []
        for name, values in self._objectives.items():
            if not values:
                continue
            neck = self._refiner.necks[name]
            objective = torch.stack(values).sum()
            if neck.searching and not neck.is_exposed:
                neck.search(objective, self._draws[name])
            objectives.append(objective.detach())
        if objectives:
            stats['sokd.aug'] = torch.stack(objectives).mean()
            stats['sokd.norm_ratio'] = torch.stack(self._ratios).mean()
        entropies = [neck.policy.entropy() for neck in self._refiner.necks.values()]
        stats['sokd.policy_entropy'] = torch.tensor(sum(entropies) / len(entropies))
        return stats


class Areas(BaseModule):
    """One :class:`~mmsokd.areas.DistinctiveAreaDetector` a feature term.

    Args:
        cfg: its config; the distiller adds ``channels``.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        self._cfg = cfg
        self.detectors = ModuleDict()

    def connect(self, terms: Mapping[str, Term]) -> None:
        """Build the heads for the terms that want areas.

        Raises:
            ValueError: no term compares features; or the config's option is not valid.
        """
        for name, term in terms.items():
            if term.wants_areas and term.is_feature:
                self.detectors[name] = build_part('areas', self._cfg, channels=term.channels)
        if not self.detectors:
            raise ValueError(
                'areas: expected a term that compares features (N, C, H, W), found none; tap one, or give areas=None'
            )

    def __contains__(self, name: str) -> bool:
        return name in self.detectors

    def untouched(self, name: str) -> Tensor | float:
        """Zero, with a graph to the head's parameters (see :meth:`Term.untouched`)."""
        return sum(p.sum() * 0.0 for p in self.detectors[name].parameters())
