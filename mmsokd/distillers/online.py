"""EKD: the teacher learns beside its student, which follows it from the start."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmsokd.checks import check_choice, telling
from mmsokd.distillers.base import Distiller, Levels, Needed, Replace, read_levels
from mmsokd.distillers.teacher import Teacher, check_no_pace
from mmsokd.distillers.term import STUDENT, Term
from mmsokd.registry import MODELS
from mmsokd.taps import FeatureTap, Probe, Tap

ONLINE = 'online_teacher'


class OnlineTeacher(Teacher):
    """A teacher that is trained: in training mode, with a graph, and a child of its distiller.

    Args:
        name, source, data_preprocessor: as :class:`~mmsokd.distillers.teacher.Teacher`'s.

    Raises:
        ValueError: as there, or ``source`` says how a frozen teacher is to be run.
    """

    frozen = False

    def __init__(self, name: str, source: Any, data_preprocessor: dict | None = None) -> None:
        check_no_pace(name, source)
        super().__init__(name, source, data_preprocessor)
        if self.has_weights:
            self.module.is_init = True  # MMEngine's Runner leaves these weights alone

    def __deepcopy__(self, memo: dict) -> 'OnlineTeacher':
        other = memo[id(self)] = object.__new__(type(self))
        vars(other).update(copy.deepcopy(vars(self), memo))  # its module is the distiller's child, in the copy too
        return other

    def probe(
        self, taps: Iterable[Tap], size: int, at: str | None = None, keys: Mapping[Tap, str] | None = None
    ) -> Probe:
        """See :meth:`Teacher.probe`."""
        found = super().probe(taps, size, at, keys)
        self._tap = FeatureTap(self.module, self.taps, copied=found.overwritten)
        return found

    def learn(self, inputs: Tensor, data_samples: list | None) -> tuple[Levels, dict[str, Any]]:
        """One training forward, of the whole network: the levels of all taps, and its own losses by the teacher's name.

        Raises:
            ValueError: as :func:`~mmsokd.distillers.base.read_levels` does.
        """
        inputs = self.prepare(inputs, data_samples)
        # Of its own: some heads change them in place, such as RTMDet-Ins its masks, and the student's turn is next.
        samples = [sample.clone() for sample in data_samples] if data_samples is not None else None
        with self._tap as tapped:
            own = self.module(inputs, samples, mode='loss')
        levels = self._read(tapped)
        return levels, {f'{self.name}.{key}': value for key, value in own.items()}

    @torch.compiler.disable
    def _read(self, tapped: Any) -> Levels:
        return read_levels(self.name, self.taps, tapped, self._probe.calls)


@MODELS.register_module()
class OnlineDistiller(Distiller):
    """A :class:`Distiller` whose teacher is trained beside the student, by its own task loss, in the same step.

    After "Student Network Learning via Evolutionary Knowledge Distillation" (Zhang et al., EKD, arXiv:2103.13811), of
    which the abstract was read: a teacher that is learned online is closer to its student than a trained one, and
    simple guided modules between corresponding blocks help the student to follow its features. Here any term is
    possible, and the guided modules are the adapters of terms on features, one a stage [ours].

    Other than a frozen ``teacher``, the ``online_teacher`` is a child of this model: in training mode, in the
    optimizer, in the checkpoint and in an EMA copy. The terms see its features of this very step as constants, so that
    nothing of the student reaches it, but for the terms that are ``mutual``: these have a second summand,
    ``mutual.<name>``, in which the two change places, so that it learns from the student, which is then the constant.
    In the log its losses are ``online_teacher.*``. An exported student has none of it; it is exported itself by
    ``export_part(checkpoint, 'online_teacher')``. In eval mode it is run as a frozen one.

    With a mutual :class:`~mmsokd.losses.DPDLoss` two networks that learn side by side imitate each other, each most
    where the other is better, as in Dual Policy Distillation (arXiv:2006.04061); with :class:`~mmsokd.losses.KDLoss`
    it is deep mutual learning (arXiv:1706.00384), there at temperature 1.

    Args:
        online_teacher: as a ``teacher`` is given; most often without a checkpoint, since it learns from scratch.
        mutual: names of terms that act both ways. They compare predictions, and nothing in them is learned.
        kwargs: :class:`Distiller`'s but ``teacher`` and ``teachers``. ``refine`` acts beside its forward: with ``at``
            its own losses would follow the refined feature.

    Raises:
        ValueError: there is a frozen teacher too, ``refine`` has ``at``, or a term cannot be mutual.
    """

    may_cache = False  # it learns

    def __init__(
        self,
        *args: Any,
        online_teacher: Any = None,
        mutual: Sequence[str] = (),
        teacher: Any = None,
        teachers: Mapping[str, Any] | None = None,
        data_preprocessor: dict | None = None,
        **kwargs: Any,
    ) -> None:
        for key, found in (('teacher', teacher), ('teachers', teachers)):
            if found is not None:
                raise ValueError(f"{key}: expected none beside '{ONLINE}', which takes its place, found {found!r}")
        online = OnlineTeacher(ONLINE, online_teacher, data_preprocessor)
        super().__init__(*args, teachers={ONLINE: online}, data_preprocessor=data_preprocessor, **kwargs)
        if self._at is not None:
            raise ValueError(
                f"refine.at: expected None beside '{ONLINE}', whose own losses would follow the refined feature, found "
                f"'{self._at}'"
            )
        self.online_teacher = online.module
        self._own: dict[str, Any] = {}
        _check_mutual(mutual, self.terms)
        self.mutual = tuple(mutual)

    def _teacher_features(
        self, inputs: Tensor, data_samples: list | None, needed: Needed, replace: Replace
    ) -> dict[str, Levels]:
        """Of its training step, whether or not some term needs them."""
        if not self.training:
            return super()._teacher_features(inputs, data_samples, needed, replace)
        levels, self._own = self._teachers[ONLINE].learn(inputs, data_samples)
        return {ONLINE: levels}

    def _distill(
        self, feats: Mapping[str, Levels], weights: Mapping[str, float], step: Any, inputs: Tensor, samples: list | None
    ) -> dict[str, Tensor]:
        """The teacher's own losses, and what it learns from the student, beside the terms'."""
        own, self._own = self._own, {}
        if self.training:
            own |= self._mutual(feats, weights, inputs, samples)
        return super()._distill(feats, weights, step, inputs, samples) | own

    @torch.compiler.disable
    def _mutual(
        self, feats: Mapping[str, Levels], weights: Mapping[str, float], inputs: Tensor, samples: list | None
    ) -> dict[str, Tensor]:
        """The mutual terms, with student and teacher in each other's place; zero while a term rests."""
        losses = {}
        for name in self.mutual:
            term = self.terms[name]
            losses[f'mutual.{name}'] = inputs.new_zeros((), dtype=torch.float32)
            if weights[name] > 0:
                with telling(term.key):
                    pair = feats[STUDENT][term.student_tap], feats[ONLINE][term.teacher_tap]
                    student, teacher = term.select(*pair, inputs.shape[-2:])
                    student = [level.detach() for level in student]
                    result = term.compare(term.adapt(teacher, student), student, None, samples)
                losses[f'mutual.{name}'] = weights[name] * result.loss
        return losses


def _check_mutual(names: Any, terms: Mapping[str, Term]) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f'mutual: expected a list of names of terms, found {names!r}')
    for name in names:
        check_choice('mutual', name, terms)
        term = terms[name]
        if term.teacher_name != ONLINE or not term.is_on_logits or list(term.parameters()):
            raise ValueError(
                f"mutual: expected terms that compare the {ONLINE}'s predictions and have nothing to learn themselves, "
                f"such as DPDLoss or KDLoss, found '{name}'"
            )
