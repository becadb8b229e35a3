"""SoKD's two plug-ins as the distiller sees them.

`refine`: what the teacher's feature becomes; `areas`: where it counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleDict, ModuleList
from torch import Tensor

from mmsokd.augment import FeatureAugmentationNeck, FeatureRefiner, KnowledgeRefiner, Policy
from mmsokd.checks import check_choice
from mmsokd.distillers.parts import build_part, check_part
from mmsokd.distillers.term import STUDENT, Term
from mmsokd.taps import Probe, as_map, as_tokens

_SHARED = 'shared'


class Regressor(Term):
    """What ``at`` needs beside the policy: the student's layer in the teacher's width and size, for L_aug.

    A term like any other, with FitNet's regressor and loss [ours]; but it learns from the detached student, so that the
    host stays what it is.

    Args:
        neck: names the layers, the resize and the teacher.
        teachers: the names of the distiller's.

    Raises:
        ValueError: ``neck.teacher`` is none of them, or missing beside several.
    """

    ranks = (4,)
    resize_by = "resize='bilinear'"

    def __init__(self, neck: FeatureRefiner, teachers: Sequence[str]) -> None:
        cfg = dict(
            type='mmsokd.FitNetLoss',
            student_tap=neck.student_at or neck.at,
            teacher_tap=neck.at,
            adapter=dict(type='mmsokd.ConvAdapter', resize=neck.resize),
        )
        if neck.teacher is not None or len(teachers) > 1:
            check_choice('refine.teacher', neck.teacher, teachers)
            cfg['teacher'] = neck.teacher
        student_key = 'refine.at' if neck.student_at is None else 'refine.student_at'
        keys = dict(student_tap=student_key, teacher_tap='refine.at', adapter='refine')
        super().__init__('loss_fit', cfg, teachers, key='refine', keys=keys)


class Refiner(BaseModule):
    """The augmentation policy, or one a term, or Meta-KD's networks; and the regressor that ``at`` needs.

    Args:
        cfg: config of a :class:`~mmsokd.augment.FeatureRefiner`.
        teachers: the names of the distiller's.

    Raises:
        ValueError: as :class:`Regressor` does, or ``cfg`` is of another class.
    """

    def __init__(self, cfg: Mapping, teachers: Sequence[str]) -> None:
        super().__init__()
        self._cfg = cfg
        neck = build_part('refine', cfg, 'augment')
        check_part('refine', neck, FeatureAugmentationNeck, KnowledgeRefiner)
        self.necks = ModuleDict({_SHARED: neck})
        self.regressor = Regressor(neck, teachers) if neck.at is not None else None

    @property
    def at(self) -> str | None:
        """The teacher's layer whose output is replaced, or None: each term's own feature is refined beside it."""
        return self.regressor.teacher_tap if self.regressor is not None else None

    def is_followed_by(self, term: Term, probes: Mapping[str, Probe]) -> bool:
        """Whether a term's tap lies behind ``at`` in the teacher: it then gets what the refined layer made of it.

        Raises:
            ValueError: some levels of a feature do, and some do not.
        """
        if self.regressor is None or term.teacher_name != self.regressor.teacher_name:
            return False
        follows = probes[term.teacher_name].follows[term.teacher_tap]
        if term.is_on_logits:
            return any(follows)  # what lies before the layer is not refined in any case
        if any(follows) and not all(follows):
            raise ValueError(
                f"{term.key}: expected levels that all follow refine.at='{self.at}', or none that does, found "
                f'{follows} at {term.teacher_tap!r} of the teacher; write one term for each kind'
            )
        return all(follows)

    def connect(self, terms: Mapping[str, Term], probes: Mapping[str, Probe]) -> None:
        """Choose the terms that are refined, and build what depends on the dry runs, of the student and the teachers.

        Raises:
            ValueError: ``at`` with ``per_term``, or at levels that do not match; or there is nothing to refine.
        """
        neck = self.necks[_SHARED]
        followers = {name: term for name, term in terms.items() if self.is_followed_by(term, probes)}
        features = [name for name, term in terms.items() if term.wants_refine and term.is_feature]
        self.names = [name for name in features if name not in followers]
        self.followers = frozenset(followers)
        if self.regressor is not None:
            if neck.per_term:
                raise ValueError("refine.per_term: expected False beside 'at' (one layer, one policy), found True")
            self._check_at(terms, followers, probes[self.regressor.teacher_name])
            self.levels = probes[self.regressor.teacher_name].specs[self.at]
            self.regressor.build(probes[STUDENT].specs[self.regressor.student_tap], self.levels)
        elif not self.names:
            raise ValueError(
                f'refine: expected a term that compares features (N, C, H, W) and has no refine=False, found only '
                f"{[term.key for term in terms.values()]}; give refine=dict(at='...') to refine a layer of the teacher "
                'from which its logits follow, or refine=None'
            )
        if neck.per_term:
            self.necks = ModuleDict({name: build_part('refine', self._cfg, 'augment') for name in self.names})
            for name, neck in self.necks.items():
                neck.connect(terms[name].channels)
            for salt, policy in enumerate(self.policies):
                policy.salt = salt

    def _check_at(self, terms: Mapping[str, Term], followers: Mapping[str, Term], teacher: Probe) -> None:
        stubborn = [name for name, term in followers.items() if not term.wants_refine]
        if stubborn:
            raise ValueError(
                f"terms.{stubborn[0]}.refine: expected True beside refine.at='{self.at}', found False: the "
                'teacher runs once, and what lies behind that layer follows it for every term'
            )
        if not followers:
            taps = {
                t.key_of('teacher_tap'): t.teacher_tap
                for t in terms.values()
                if t.teacher_name == self.regressor.teacher_name
            }
            raise ValueError(
                f"refine.at: expected a term that taps the teacher at or behind '{self.at}', found only {taps}, "
                'which it would not change'
            )
        if teacher.calls.get(self.at) != 1:
            raise ValueError(
                'refine.at: expected a layer of the teacher that gives its whole output in one call, without an '
                f"index, such as 'backbone.layer3', found '{self.at}'"
            )

    @property
    def policies(self) -> list[Policy]:
        """Those of the necks that have one."""
        return [neck.policy for neck in self.necks.values() if isinstance(neck, FeatureAugmentationNeck)]

    def begin(self, inputs: Tensor) -> 'RefineStep':
        """Draw for one step on the batch ``inputs``."""
        return RefineStep(self, inputs)


class RefineStep:
    """One step's draws and what was refined with them; lives as long as the step."""

    def __init__(self, refiner: Refiner, inputs: Tensor) -> None:
        self._refiner = refiner
        self._size = tuple(inputs.shape[-2:])
        self.draws = {name: neck.sample(len(inputs), inputs.device) for name, neck in refiner.necks.items()}
        self._done: dict[tuple, list[Tensor]] = {}
        self._objectives: dict[str, list[Tensor]] = {name: [] for name in self.draws}
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
        policy = name if name in self.draws else _SHARED
        neck = self._refiner.necks[policy]
        key = (policy, *source)
        if key not in self._done:
            self._done[key] = neck.refine(feats, target, self.draws[policy])
            self._ratios.append(neck.norm_ratio(self._done[key], feats))
        refined = self._done[key]
        self._objectives[policy].append(neck.objective(refined, target))
        return refined if neck.is_exposed else [x.detach().to(f.dtype) for x, f in zip(refined, feats, strict=True)]

    def replace(self, output: Any) -> Any:
        """The output hook of the teacher's layer ``at``: its refined feature goes on through the network."""
        feats = [output] if isinstance(output, Tensor) else list(output)
        neck, specs = self._refiner.necks[_SHARED], self._refiner.levels
        maps = [as_map(feat, spec, self._size) for feat, spec in zip(feats, specs, strict=True)]
        done = neck(maps, self.draws[_SHARED])
        self._ratios.append(neck.norm_ratio(done, maps))
        with torch.enable_grad():  # around it the teacher runs without, and the policy wants its graph
            self._replaced = [as_tokens(x, feat, spec) for x, feat, spec in zip(done, feats, specs, strict=True)]
        # A copy: the layer that follows may change its input in place.
        refined = [x.detach().to(f.dtype, copy=True) for x, f in zip(self._replaced, feats, strict=True)]
        return refined[0] if isinstance(output, Tensor) else type(output)(refined)

    def fit(self, student: Sequence[Tensor]) -> Tensor:
        """With ``at``: the regressor's own loss to ``F~_t`` from the detached student; records L_aug too."""
        regressor = self._refiner.regressor
        if self._replaced is None:  # no term needed the teacher in this step; DDP still wants the parameters touched
            return student[0].new_zeros((), dtype=torch.float32) + regressor.untouched()
        student, teacher = regressor.select([s.detach() for s in student], self._replaced, self._size)
        adapted = regressor.adapt(student, teacher)
        self._objectives[_SHARED].append(self._refiner.necks[_SHARED].objective(teacher, adapted))
        return regressor(adapted, [t.detach() for t in teacher])

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
                neck.search(objective, self.draws[name])
            objectives.append(objective.detach())
        if objectives:
            stats['sokd.aug'] = torch.stack(objectives).mean()
            stats['sokd.norm_ratio'] = torch.stack(self._ratios).mean()
        entropies = [policy.entropy() for policy in self._refiner.policies]
        if entropies:
            stats['sokd.policy_entropy'] = torch.tensor(sum(entropies) / len(entropies))
        return stats


class Default(dict):
    """A plug-in's config that no user wrote: where there is nothing for it to act on it may be left out."""


class Areas(BaseModule):
    """One :class:`~mmsokd.areas.DistinctiveAreaDetector` a feature term.

    Args:
        cfg: its config; the distiller adds ``channels``.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        self._cfg = cfg
        self._is_default = isinstance(cfg, Default)
        self.detectors = ModuleDict()

    def is_idle(self, terms: Mapping[str, Term]) -> bool:
        """Whether no user wrote it, and no term has areas."""
        return self._is_default and not any(term.wants_areas and term.is_feature for term in terms.values())

    def connect(self, terms: Mapping[str, Term], keep_host: bool) -> None:
        """Build the heads for the terms that want areas; without ``keep_host`` the area loss takes their loss's place.

        Raises:
            ValueError: no term compares features; the config's option is not valid; or a term that gives way has a
                weight.
        """
        for name, term in terms.items():
            if term.wants_areas and term.is_feature:
                self.detectors[name] = build_part('areas', self._cfg, 'areas', channels=term.channels)
        if not self.detectors:
            raise ValueError(
                'areas: expected a term that compares features (N, C, H, W) and has no areas=False, found only '
                f'{[term.key for term in terms.values()]}; tap one, or give areas=None'
            )
        for term in (terms[name] for name in self.detectors if not keep_host):
            if not term.weight.is_switch:
                raise ValueError(
                    f'{term.key}.loss_weight: expected 1, or dict(stop=...), beside keep_host=False, where the area '
                    'loss takes the place of the term; areas.area_weight scales that'
                )
            term.losses = ModuleList()  # what they would learn gets no gradient, for which DDP would wait

    def __contains__(self, name: str) -> bool:
        return name in self.detectors

    def untouched(self, name: str) -> Tensor | float:
        """Zero, with a graph to the head's parameters (see :meth:`Term.untouched`)."""
        return sum(p.sum() * 0.0 for p in self.detectors[name].parameters())
