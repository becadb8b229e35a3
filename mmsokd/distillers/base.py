"""The distiller: a student, its teachers, and the terms between them, as one ordinary MMEngine model."""

import inspect
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import ModuleDict
from torch import Tensor

from mmsokd.areas import AreaResult
from mmsokd.checks import check_bool, check_integer, check_keys, telling
from mmsokd.distillers.build import build_model
from mmsokd.distillers.cache import TeacherCache
from mmsokd.distillers.face import Face
from mmsokd.distillers.plugins import Areas, Refiner, RefineStep
from mmsokd.distillers.rehearsal import blank_samples
from mmsokd.distillers.schedule import Clock
from mmsokd.distillers.teacher import Teacher
from mmsokd.distillers.term import STUDENT, Term, mean_stats
from mmsokd.registry import MODELS
from mmsokd.taps import Features, FeatureTap, Tap, in_eval, parse_tap, paths_of, probe, run_for_taps

Levels = dict[Tap, list[Tensor]]  # tap -> its levels
Needed = dict[str, list[Tap]]  # teacher -> its taps that some term reads in this step
Replace = dict[str, dict[str, Callable[[Any], Any]]]  # teacher -> its layer -> function of its output
_LARGEST_PROBE = 8192  # a larger picture shows nothing more, and its features would fill the memory
# What each plug-in says of a step.
_REFINE_KEYS = ('sokd.aug', 'sokd.norm_ratio')
_AREA_KEYS = (
    'sokd.loss_agreement',
    'sokd.loss_area',
    'sokd.loss_anchor',
    'sokd.mask_cover',
    'sokd.heat_std',
    'sokd.area_mean',
)


class Compared(NamedTuple):
    """What one term compares, level by level (N, C, H, W), for looking at."""

    student: list[Tensor]  # as tapped
    adapted: list[Tensor]  # Phi_s(F_s)
    teacher: list[Tensor]
    refined: list[Tensor]  # the teacher's feature as a draw of the policy leaves it


@MODELS.register_module()
class Distiller(Face):
    """Trains ``student`` on its own task losses and on ``terms``, which compare its features with a teacher's.

    In ``loss`` mode it runs one step of the picture in the documentation's *concepts*; in ``predict`` and ``tensor``
    mode it *is* the student.

    Args:
        student: a model dict, a Config, a local path, ``'scope::path'`` or ``dict(cfg=...)``.
        teacher: ``dict(cfg=..., checkpoint=...)``, with the keys of :class:`~mmsokd.distillers.teacher.Pace` where it
            shall be faster, a model dict, or a path. It is frozen, in eval mode whatever
            :meth:`train` says, and in neither the state dict, the optimizer nor an EMA copy.
        teachers: several of them by name, instead of ``teacher``.
        terms: name (containing ``loss``) -> :class:`~mmsokd.distillers.term.Term`'s config.
        refine: SoKD's DAFA (:class:`~mmsokd.augment.FeatureAugmentationNeck`), or None.
        areas: SoKD's DAM (:class:`~mmsokd.areas.DistinctiveAreaDetector`), or None.
        keep_host: whether the terms' own losses stay beside SoKD's area loss. Without, the area loss takes their
            place, as in the authors' CIFAR code.
        probe_size: side of the noise image, in pixels, on which shapes are inferred.
        data_preprocessor: the config's top-level one, handed on to the student.

    Raises:
        ValueError, TypeError, FileNotFoundError: something in the config cannot be; the message tells the key, what
            was found, what was expected and the nearest valid name.
    """

    trains = STUDENT
    needs_terms: ClassVar[bool] = True  # whether there is nothing to learn from the teacher without
    may_cache: ClassVar[bool] = True  # whether frozen teachers see the data set's own pictures, and nothing else
    needs_whole_teacher: ClassVar[bool] = False  # whether it runs what no tap reads

    def __init__(
        self,
        student: Any = None,
        teacher: Any = None,
        teachers: Mapping[str, Any] | None = None,
        terms: Mapping[str, Mapping] | None = None,
        refine: Mapping | None = None,
        areas: Mapping | None = None,
        keep_host: bool = True,
        probe_size: int = 256,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        **unknown: Any,
    ) -> None:
        check_keys('model', unknown, _keys_of(type(self)))
        check_bool('keep_host', keep_host)
        check_integer('probe_size', probe_size, 1)
        if probe_size > _LARGEST_PROBE:
            raise ValueError(f'probe_size: expected a side of at most {_LARGEST_PROBE} pixels, found {probe_size}')
        student = build_model('student', student, data_preprocessor)
        super().__init__(student, data_preprocessor, init_cfg)
        self.keep_host = keep_host
        self.probe_size = probe_size
        self._looked_for_deaf_taps = False
        self._teachers = self._build_teachers(teacher, teachers, data_preprocessor)
        for guard in self._teachers.values():
            if guard.module is self.student:
                raise ValueError(f'{guard.name}: expected a model of its own, found the student, which it would freeze')
        terms = {} if terms is None and not self.needs_terms else terms
        if not isinstance(terms, Mapping) or (not terms and self.needs_terms):
            raise ValueError(f'terms: expected a dict of at least one term, found {terms!r}')
        if not keep_host and areas is None:
            raise ValueError("keep_host: expected True where 'areas' is None, found False: nothing would be distilled")
        self.terms = ModuleDict({name: Term(name, cfg, list(self._teachers)) for name, cfg in terms.items()})
        self.refine = Refiner(refine, list(self._teachers)) if refine is not None else None
        self.areas = Areas(areas) if areas is not None else None
        self._connect(probe_size)

    # ---- building -------------------------------------------------------------------------------------------------

    @staticmethod
    def _build_teachers(
        teacher: Any, teachers: Mapping[str, Any] | None, preprocessor: dict | None
    ) -> dict[str, Teacher]:
        if teacher is not None and teachers is not None:
            raise ValueError("teacher: expected 'teacher' or 'teachers', found both")
        if teachers is not None and not isinstance(teachers, Mapping):
            raise ValueError(f'teachers: expected a dict of name -> teacher, found {teachers!r}')
        if teachers is None:
            return {} if teacher is None else {'teacher': Teacher('teacher', teacher, preprocessor)}
        if STUDENT in teachers:
            raise ValueError(f"teachers.{STUDENT}: expected another name; '{STUDENT}' means the student itself")
        return {
            name: source if isinstance(source, Teacher) else Teacher(f'teachers.{name}', source, preprocessor)
            for name, source in teachers.items()
        }

    def _connect(self, size: int) -> None:
        """Dry-run every model once, match the taps' levels, and build what depends on their shapes."""
        taps: dict[str, dict[Tap, str]] = {STUDENT: {}, **{name: {} for name in self._teachers}}  # tap -> its key
        for term in (*self.terms.values(), *([self.refine.regressor] if self._at is not None else [])):
            term.find_taps({STUDENT: self.student, **self.teachers})
            taps[STUDENT].setdefault(term.student_tap, term.key_of('student_tap'))
            taps[term.teacher_name].setdefault(term.teacher_tap, term.key_of('teacher_tap'))
        self._student_taps = list(taps[STUDENT])
        with telling('student'):
            probes = {STUDENT: probe(self.student, self._student_taps, size, keys=taps[STUDENT])}
        self._student_calls = probes[STUDENT].calls
        self._tap = FeatureTap(self.student, self._student_taps, copied=probes[STUDENT].overwritten)
        for name, teacher in self._teachers.items():
            if not taps[name] and self.needs_terms:
                raise ValueError(f"{teacher.name}: expected a term with teacher='{name}', found none; leave it out")
            with telling(teacher.name):
                is_refined = self._at is not None and name == self.refine.regressor.teacher_name
                probes[name] = teacher.probe(taps[name], size, self._at if is_refined else None, taps[name])
                teacher.match_normalization(self.data_preprocessor)
                if is_refined and teacher.pace.stream:
                    raise ValueError(
                        f'{teacher.name}.stream: expected False beside refine.at, which reaches into this teacher, '
                        'found True'
                    )
            teacher.match_padding(self.data_preprocessor, size)
            if teacher.pace.trim:
                if self.needs_whole_teacher:
                    raise ValueError(
                        f'{teacher.name}.trim: expected False for a {type(self).__name__}, which needs more of its '
                        'teacher than the taps do, found True'
                    )
                teacher.trim(size)
        for term in self.terms.values():
            has_areas = self.areas is not None and term.wants_areas
            is_refined = self.refine is not None and term.wants_refine and not self.refine.is_followed_by(term, probes)
            term.build(
                probes[STUDENT].specs[term.student_tap],
                probes[term.teacher_name].specs[term.teacher_tap],
                default_adapter='mmsokd.SoKDAdapter' if has_areas else None,
                equal_channels=has_areas or is_refined,
            )
        if self.refine is not None:
            self.refine.connect(self.terms, probes)
        if self.areas is not None and self._at is not None and self.keep_host and self.areas.is_idle(self.terms):
            self.areas = None
        if self.areas is not None:
            self.areas.connect(self.terms, self.keep_host)
        samples = blank_samples(self.student, size)
        for term in self.terms.values():
            term.rehearse(samples)

    @property
    def _at(self) -> str | None:
        return self.refine.at if self.refine is not None else None

    # ---- what others see ------------------------------------------------------------------------------------------

    @property
    def teachers(self) -> dict[str, torch.nn.Module]:
        """The frozen teachers by name; ``'teacher'`` where there is but one."""
        return {name: teacher.module for name, teacher in self._teachers.items()}

    @property
    def teacher(self) -> torch.nn.Module:
        """The frozen teacher, where there is but one.

        Raises:
            ValueError: there is none, or there are several.
        """
        if len(self._teachers) != 1:
            raise ValueError(f'teacher: expected a distiller with one, found {list(self._teachers)}; see .teachers')
        return next(iter(self._teachers.values())).module

    def open_caches(self, folder: Path, dtype: str, capacity: int, hint: str = '') -> None:
        """Keep what the teachers give of training pictures on disk, for :class:`~mmsokd.hooks.TeacherCacheHook`.

        Args:
            folder: below which each teacher has one of its own.
            dtype: stored, of :data:`~mmsokd.distillers.cache.DTYPES`.
            capacity: the most pictures there can be, views included.
            hint: for the message that there are more.

        Raises:
            ValueError: the teachers' outputs are not the same again for the same picture, or a folder has others.
        """
        if not self.may_cache or not self._teachers:
            raise ValueError(
                "TeacherCacheHook: expected a distiller whose frozen teachers see the data set's own pictures, found "
                f'{type(self).__name__}{"" if self._teachers else " without a teacher"}; leave the hook out'
            )
        if self._at is not None:
            raise ValueError(
                f"TeacherCacheHook: expected refine.at=None, since a cached teacher is not run, found '{self._at}'; "
                'refine a tapped feature, or leave the hook out'
            )
        for name, teacher in self._teachers.items():
            teacher.open_cache(folder / name, dtype, capacity, hint, self.data_preprocessor.device)

    def fill_caches(self, inputs: Tensor, data_samples: list | None = None) -> None:
        """Let each cache have these pictures of a preprocessed training batch; nothing is trained."""
        for teacher in self._teachers.values():
            if teacher.cache is not None:
                teacher.features(inputs, data_samples, training=True)

    def close_caches(self) -> None:
        """Run the teachers for every picture again."""
        for teacher in self._teachers.values():
            teacher.close_cache()

    @property
    def caches(self) -> dict[str, TeacherCache]:
        """Those that are open, by the teacher's key."""
        return {teacher.name: teacher.cache for teacher in self._teachers.values() if teacher.cache is not None}

    def train(self, mode: bool = True) -> 'Distiller':
        """Set the student's mode; a teacher stays in eval."""
        super().train(mode)
        for teacher in self._teachers.values():
            if teacher.frozen:
                teacher.module.eval()
        return self

    # ---- the step -------------------------------------------------------------------------------------------------

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """The student's own losses, each term's as ``distill.<name>``, and SoKD's as ``sokd.*``.

        Args:
            inputs: the preprocessed batch (N, 3, H, W).
            data_samples: one a picture, with the annotations.

        Raises:
            FloatingPointError: a loss is NaN or Inf; names it.
        """
        weights, needed, replace, step = self._begin(inputs)
        # The teacher first: its feature maps are then all that is held while the student runs.
        feats = self._teacher_features(inputs, data_samples, needed, replace)
        with self._tap as tapped:
            losses = self.student(inputs, data_samples, mode='loss')
        self._join(feats)
        # mmpretrain's only loss is called as MMEngine calls the sum in the log, and would stand in its place there.
        losses = {'student.loss' if name == 'loss' else name: value for name, value in losses.items()}
        feats[STUDENT] = self._student_features(tapped)
        losses.update(self._distill(feats, weights, step, inputs, data_samples))
        self._guard.watch(losses)
        return losses

    # Under torch.compile the student's and the teacher's networks are compiled. What stands between them is not: the
    # clock and the draws steer Python, and guards on either would compile anew in every step.

    @torch.compiler.disable
    def _begin(self, inputs: Tensor) -> tuple[dict[str, float], Needed, Replace, RefineStep | None]:
        """Each term's weight, what is needed of the teachers, and the augmentation's draws."""
        weights = self._weights()
        step = self.refine.begin(inputs) if self.refine is not None else None
        alive = {name: term for name, term in self.terms.items() if weights[name] > 0}
        return weights, self._needed(alive), self._replacing(alive, step), step

    def _replacing(self, terms: Mapping[str, Term], step: RefineStep | None) -> Replace:
        """What of the teachers' layers is replaced, where one of ``terms`` follows it."""
        if step is None or self._at is None or self.refine.followers.isdisjoint(terms):
            return {}
        return {self.refine.regressor.teacher_name: {self._at: step.replace}}

    def _needed(self, terms: Mapping[str, Term]) -> Needed:
        """What ``terms`` read of each teacher."""
        read = {(term.teacher_name, term.teacher_tap) for term in terms.values()}
        return {name: [tap for tap in t.taps if (name, tap) in read] for name, t in self._teachers.items()}

    def _warn_of_deaf_taps(self, feats: Levels) -> None:
        """A tap without a graph teaches the student nothing: say so, once."""
        if self._looked_for_deaf_taps or not (self.training and torch.is_grad_enabled()):
            return
        self._looked_for_deaf_taps = True
        for tap in dict.fromkeys(term.student_tap for term in self.terms.values()):
            if not any(level.requires_grad for level in feats[tap]):
                print_log(
                    f"tap '{tap}' carries no gradient to the student: it is frozen, or lies inside an "
                    'activation-checkpointed block; tap the whole block instead',
                    'current',
                    logging.WARNING,
                )

    def _weights(self) -> dict[str, float]:
        """Each term's weight now."""
        clock = Clock.now()
        return {name: term.weight(clock) for name, term in self.terms.items()}

    def _teacher_features(
        self, inputs: Tensor, data_samples: list | None, needed: Needed, replace: Replace
    ) -> dict[str, Levels]:
        """Run each teacher to the deepest tap that is needed in this step."""
        return {
            name: teacher.features(inputs, data_samples, replace.get(name), needed[name], self.training)
            for name, teacher in self._teachers.items()
            if needed[name]
        }

    @torch.compiler.disable
    def _join(self, feats: dict[str, Levels]) -> dict[str, Levels]:
        """``feats``, once the device has waited for the teachers that run on a stream of their own."""
        for name, levels in feats.items():
            self._teachers[name].pace.join(level for tap in levels.values() for level in tap)
        return feats

    @torch.compiler.disable
    def _student_features(self, tapped: Features) -> Levels:
        """The student's levels."""
        return read_levels(STUDENT, self._student_taps, tapped, self._student_calls)

    @torch.compiler.disable
    def _distill(
        self,
        feats: Mapping[str, Levels],
        weights: Mapping[str, float],
        step: RefineStep | None,
        inputs: Tensor,
        samples: list | None,
    ) -> dict[str, Tensor]:
        """The terms' losses, SoKD's, and the diagnostics: the same keys in every step.

        What rests has a loss of zero, with a graph to its parameters, which DDP wants touched, and NaN for diagnostics:
        MMEngine's log would go on showing the last ones.
        """
        self._warn_of_deaf_taps(feats[STUDENT])
        zero = inputs.new_zeros((), dtype=torch.float32)
        losses: dict[str, Tensor] = {}
        results: list[AreaResult] = []
        told: list[Mapping[str, Tensor]] = []
        for name, term in self.terms.items():
            has_areas = self.areas is not None and name in self.areas
            key = f'distill.{name}' if self.keep_host or not has_areas else 'sokd.loss_area'
            if weights[name] == 0:
                rest = zero + term.untouched() + (self.areas.untouched(name) if has_areas else 0.0)
                losses[key] = losses.get(key, 0.0) + rest
                continue
            with telling(term.key):
                pair = feats[STUDENT][term.student_tap], feats[term.teacher_name][term.teacher_tap]
                student, teacher = term.select(*pair, inputs.shape[-2:])
                source = (term.teacher_name, term.teacher_tap, term.matches and name, *(j for _, j in term.pairs))
                teacher = [t.detach() for t in teacher]
                student = term.adapt(student, teacher)
                teacher = term.match(student, teacher)
                if step is not None and name in self.refine.names:
                    teacher = step.refine(name, source, teacher, student)
                areas = self.areas.detectors[name](student, teacher) if has_areas else None
                if areas is not None:
                    results.append(areas)
                if areas is None or self.keep_host:
                    masks = areas.weights if areas is not None else None
                    result = term.compare(student, teacher, masks, samples)
                    losses[key] = weights[name] * result.loss
                    told.append(result.stats)
        for key, value in _sum_areas(results).items():
            losses[key] = losses.get(key, 0.0) + value
        if step is not None:
            if self._at is not None:
                losses['sokd.loss_fit'] = step.fit(feats[STUDENT][self.refine.regressor.student_tap])
            losses.update(step.finish())
        stats = list(dict.fromkeys(name for term in self.terms.values() for name in term.stats))
        losses.update(mean_stats(stats, told))
        keys = (*(_AREA_KEYS if self.areas is not None else ()), *(_REFINE_KEYS if step is not None else ()), *stats)
        for key in keys:
            losses.setdefault(key, zero if 'loss' in key else zero + torch.nan)
        return losses

    # ---- looking at it --------------------------------------------------------------------------------------------

    def detect_areas(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, list]:
        """The areas each feature term would be compared in, for drawing; the teacher's feature is taken unrefined.

        Args:
            inputs: a preprocessed batch (N, 3, H, W).
            data_samples: one a picture; needed where a head is tapped.

        Returns:
            term -> level by level, what :meth:`~mmsokd.areas.DistinctiveAreaDetector.detect` gives; nothing where
            ``areas`` is None, or the term rests.
        """
        if self.areas is None:
            return {}
        compared = self.compared_features(inputs, data_samples, names=self.areas.detectors)
        with in_eval(self.areas):
            return {name: self.areas.detectors[name].detect(x.adapted, x.teacher) for name, x in compared.items()}

    @torch.no_grad()
    def compared_features(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        names: Container[str] | None = None,
        step: RefineStep | None = None,
    ) -> dict[str, Compared]:
        """What each feature term compares, for looking at.

        Args:
            inputs: a preprocessed batch (N, 3, H, W).
            data_samples: one a picture; needed where a head is tapped.
            names: of the terms; by default all that compare features.
            step: the draws to refine the teacher by, ``refine.begin(inputs)``; without, it is not refined.

        Returns:
            term -> its features; nothing of a term that rests.
        """
        weights = self._weights()
        terms = {
            name: term
            for name, term in self.terms.items()
            if weights[name] > 0 and (term.is_feature if names is None else name in names)
        }
        if not terms:
            return {}
        with in_eval(self):
            with self._tap as tapped:
                run_for_taps(self.student, self._student_taps, inputs, data_samples)
            ours = {STUDENT: {tap: tapped[tap] for tap in self._student_taps}}
            needed, replace = self._needed(terms), self._replacing(terms, step)
            plain = ours | self._join(self._teacher_features(inputs, data_samples, needed, {}))
            replaced = plain
            if replace:
                replaced = ours | self._join(self._teacher_features(inputs, data_samples, needed, replace))
            found = {}
            for name, term in terms.items():
                levels = (x[term.teacher_name][term.teacher_tap] for x in (plain, replaced))
                own = ours[STUDENT][term.student_tap]
                (student, teacher), (_, refined) = (term.select(own, x, inputs.shape[-2:]) for x in levels)
                adapted = term.adapt(student, teacher)
                teacher, refined = term.match(adapted, teacher), term.match(adapted, refined)
                if step is not None and name in self.refine.names:
                    refined = step.refine(name, (name,), refined, adapted)
                found[name] = Compared(student, adapted, teacher, refined)
        return found


def read_levels(model: str, taps: Sequence[Tap], tapped: Features, calls: Mapping[str, int]) -> Levels:
    """The levels of what a training forward gave.

    Args:
        model: its name in the config, for messages.
        taps: to read.
        tapped: what was heard.
        calls: how often the dry run called each tapped module.

    Raises:
        ValueError: the training forward calls a tapped module more often than the dry run did, or less: which of the
            outputs a term means is not to be known.
    """
    seen = tapped.calls
    for path in dict.fromkeys(path for tap in taps for path in paths_of(tap)):
        module = parse_tap(path).module
        if seen[module] != calls[module]:
            raise ValueError(
                f"{model}: tap '{path}': expected {calls[module]} calls of '{module}' in a training forward, as in the "
                f'dry run, found {seen[module]}; tap a layer that every forward calls alike'
            )
    return {tap: tapped[tap] for tap in taps}


def _keys_of(cls: type) -> list[str]:
    """What the config of a distiller may hold: a derived class hands on what it does not take itself."""
    classes = cls.__mro__[: cls.__mro__.index(Distiller) + 1]
    parameters = [p for c in classes for p in inspect.signature(c).parameters.values()]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _sum_areas(results: Sequence[AreaResult]) -> dict[str, Tensor]:
    """SoKD's losses, summed over the terms, and its diagnostics, averaged over them."""
    out: dict[str, Tensor] = {}
    for result in results:
        for name, value in result.losses.items():
            out[f'sokd.{name}'] = out.get(f'sokd.{name}', 0.0) + value
        for name, value in result.stats.items():
            out[f'sokd.{name}'] = out.get(f'sokd.{name}', 0.0) + value / len(results)
    return out
