"""From two models and a method to the terms of a distiller: which taps, paired by stride, and what they need."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmsokd.adapters.conv import MODES
from mmsokd.distillers.adapting import is_pyramid
from mmsokd.recipes import anatomy
from mmsokd.recipes.methods import (
    AREAS,
    BOXES,
    FINE_LEVELS,
    HEAD,
    LAST,
    LAST_STAGES,
    LEVELS,
    NEXT_TO_LAST,
    STAGES,
    Found,
    Host,
    Method,
)
from mmsokd.recipes.survey import Survey
from mmsokd.registry import MODELS
from mmsokd.taps import FeatureSpec, match_levels, parse_tap

RESIZE = MODES[0]
_WIDTH = 256  # SoKDAdapter's at most, as where the distiller chooses it
Paths = list[str]


class TermPlan(NamedTuple):
    """One entry of ``terms``.

    Attributes:
        name: its key.
        host: whose term it is.
        student, teacher: taps.
        options: arguments of the loss.
        weight: as Python text.
        adapter: None where it is inferred.
    """

    name: str
    host: Host
    student: Paths
    teacher: Paths
    options: dict[str, Any]
    weight: str
    adapter: dict | None


class Plan(NamedTuple):
    """What a distiller's config says.

    Attributes:
        method: the method.
        terms: the terms.
        refine, areas: SoKD's plug-ins, or None.
        probe_size: of the dry runs.
        remarks: what was left out or resized, in sentences.
    """

    method: Method
    terms: list[TermPlan]
    refine: dict | None
    areas: dict | None
    probe_size: int
    remarks: list[str]


class Pairing:
    """Chooses the taps of two models.

    Args:
        student, teacher: what their dry runs saw.
        task: of both.
    """

    def __init__(self, student: Survey, teacher: Survey, task: str) -> None:
        self.student = student
        self.teacher = teacher
        self.task = task
        self.remarks: list[str] = []

    def role(self, role: str) -> tuple[Paths, Paths]:
        """The taps of both models for what a host compares.

        Raises:
            ValueError: one of the models has no such thing, or they do not go together; tells why.
        """
        if role in (LAST, NEXT_TO_LAST):
            ours, theirs = self._stage(-1 if role == LAST else -2)
            return [ours], [theirs]
        if role in (STAGES, LAST_STAGES):
            return self._stages(None if role == STAGES else 3)
        if role == HEAD:
            return [anatomy.head_feature(self.student, self.task)], [anatomy.head_feature(self.teacher, self.task)]
        if role in (LEVELS, FINE_LEVELS):
            find, most = anatomy.pyramid, 3 if role == FINE_LEVELS else None
        elif role == BOXES:
            find, most = anatomy.box_distributions, None
        else:
            find, most = lambda survey: anatomy.logits(survey, self.task), None
        ours, theirs = find(self.student), find(self.teacher)
        return self._levels(ours, theirs, most) if self.task == 'detection' else ([ours], [theirs])

    def _stage(self, index: int) -> tuple[str, str]:
        """The student's stage, and the teacher's of its stride: at the same place from the end, or next to it.

        Where there is none of that stride it is the one at the same place, and of another size.
        """
        ours, theirs = anatomy.stages(self.student), anatomy.stages(self.teacher)
        for stages, survey in ((ours, self.student), (theirs, self.teacher)):
            if len(stages) < -index:
                raise ValueError(
                    f'expected a backbone of at least {-index} stages, found {stages} in '
                    f'{type(survey.model).__name__}; choose taps of your own'
                )
        stride = self.student.specs(ours[index])[0].stride
        near = [i for i in (index, index - 1, index + 1) if -len(theirs) <= i < 0]
        fits = [i for i in near if self.teacher.specs(theirs[i])[0].stride == stride]
        return ours[index], theirs[fits[0] if fits else index]

    def _stages(self, most: int | None) -> tuple[Paths, Paths]:
        """As many of both, from the end."""
        ours, theirs = anatomy.stages(self.student), anatomy.stages(self.teacher)
        count = min(len(ours), len(theirs), most or len(ours))
        return ours[-count:], theirs[-count:]

    def _levels(self, ours: str, theirs: str, most: int | None) -> tuple[Paths, Paths]:
        """The levels of strides that both have.

        Raises:
            ValueError: there are none.
        """
        s, t = self.student.specs(ours), self.teacher.specs(theirs)
        if most is None and match_levels(s, t) is not None:
            return [ours], [theirs]
        strides = [spec.stride for spec in s], [spec.stride for spec in t]
        shared = [stride for stride in strides[0] if stride in strides[1]][:most]
        if not shared:
            raise ValueError(
                f'expected levels of one stride on both sides, found strides {strides[0]} at {ours!r} of the student '
                f'and {strides[1]} at {theirs!r} of the teacher; choose taps of your own'
            )
        lonely = [stride for stride in strides[0] if stride not in strides[1]]
        if lonely:
            self.remarks.append(
                f"The student's levels of stride {', '.join(map(str, lonely))} at {ours!r} have no partner in the "
                'teacher, and are left out.'
            )
        return tuple(
            _pick(tap, [all_of_it.index(stride) for stride in shared], len(all_of_it))
            for tap, all_of_it in zip((ours, theirs), strides, strict=True)
        )

    def custom(self, student: str | None, teacher: str | None) -> tuple[Paths, Paths]:
        """The user's taps, each a path or several with commas between; what is left out is the same in the other model.

        Raises:
            ValueError: a tap is not there; names the nearest ones.
        """
        found = []
        for key, given, other, survey in (
            ('--student-tap', student, teacher, self.student),
            ('--teacher-tap', teacher, student, self.teacher),
        ):
            paths = [path.strip() for path in (given or other).split(',')]
            for path in paths:
                try:
                    survey.specs(path)
                except (KeyError, TypeError, ValueError) as error:
                    text = str(error).removeprefix(f"tap '{path}': ").removeprefix('tap: ')
                    hint = '' if given else f'; give {key} too'
                    raise ValueError(f'{key}: {text}{hint}') from error
            found.append(paths)
        return found[0], found[1]

    def adapter(self, term: Host, taps: tuple[Paths, Paths], areas: bool) -> dict | None:
        """What resizes the student's map, where the two are of other sizes and have to be of one.

        Pyramids need none: their levels are paired by stride.
        """
        s, t = self._specs(*taps)
        loss = MODELS.get(term.loss)
        alike = loss.same_size or (areas and not loss.on_logits)
        if not alike or not _is_one_map(s) or not _is_one_map(t) or s[0].size == t[0].size:
            return None
        self.remarks.append(
            f'{taps[0][0]!r} of the student has stride {s[0].stride} and {taps[1][0]!r} of the teacher {t[0].stride}: '
            "the student's map is resized."
        )
        if loss.on_logits:
            return dict(type='mmsokd.ResizeAdapter', resize=RESIZE)
        own = loss.default_adapter
        if own is not None:
            return None if is_pyramid(MODELS.get(own)) else dict(type=own, resize=RESIZE)
        if not areas:
            return dict(type='mmsokd.ConvAdapter', resize=RESIZE)
        width = dict(feat_channels=_WIDTH) if t[0].channels > _WIDTH else {}
        return dict(type='mmsokd.SoKDAdapter', **width, resize=RESIZE)

    def _specs(self, ours: Paths, theirs: Paths) -> tuple[list[FeatureSpec], list[FeatureSpec]]:
        return self.student.specs(tuple(ours)), self.teacher.specs(tuple(theirs))

    def refined_layer(self) -> dict:
        """DAFA's options where logits are compared: the teacher's next-to-last stage, and the student's.

        Raises:
            ValueError: the teacher's has no layer that gives its whole output.
        """
        ours, theirs = self._stage(-2)
        options = dict(at=_layer(self.teacher, theirs))
        student_at = _layer(self.student, ours)
        if student_at != options['at']:
            options['student_at'] = student_at
        if self.student.specs(ours)[0].size != self.teacher.specs(theirs)[0].size:
            options['resize'] = RESIZE
        return options

    def value(self, found: Any, taps: tuple[Paths, Paths], pictures: int | None) -> Any:
        """A loss's argument, read off the models where it is a :class:`Found`."""
        if found == Found.CLASSES:
            return anatomy.num_classes(self.student)
        if found == Found.RESPONSES:
            return len(self.student.specs(taps[0][-1]))
        return pictures if found == Found.PICTURES else found


def make_plan(
    method: Method,
    student: Survey,
    teacher: Survey,
    taps: tuple[str | None, str | None] = (None, None),
    pictures: int | None = None,
) -> Plan:
    """Choose and pair the taps of ``method``.

    Args:
        method: host and task.
        student, teacher: what the dry runs saw.
        taps: the user's own for both sides; where one is given, the first term alone is left.
        pictures: how many the training set has, for hosts that ask for it.

    Raises:
        ValueError: it cannot be; tells why.
    """
    pairing = Pairing(student, teacher, method.task)
    host = method.host
    has_areas = method.sokd and not host.on_logits
    terms = []
    for name, roles in host.terms.items():
        if any(taps):
            both = pairing.custom(*taps)
        else:
            found = [pairing.role(role) for role in roles]
            both = tuple([path for side in found for path in side[i]] for i in (0, 1))
        options = {key: pairing.value(value, both, pictures) for key, value in host.options.items()}
        levels = sum(len(student.specs(path)) for path in both[0])
        weight = f'{host.weight!r}'
        if host.over is not None:
            weight = (
                f'{host.weight:g} / {dict(classes=student.specs(both[0][-1])[0].channels, levels=levels)[host.over]}'
            )
        terms.append(TermPlan(name, host, *both, options, weight, pairing.adapter(host, both, has_areas)))
        if any(taps):
            break
    refine = areas = None
    if method.sokd:
        refine = dict(type='mmsokd.FeatureAugmentationNeck', **(pairing.refined_layer() if host.on_logits else {}))
    if has_areas:
        areas = dict(type='mmsokd.DistinctiveAreaDetector', **AREAS[method.task])
        if levels > 1:
            areas['area_weight'] = round(1 / levels, 3)  # they are summed
    return Plan(method, terms, refine, areas, student.size, pairing.remarks)


def _is_one_map(specs: Sequence[FeatureSpec]) -> bool:
    return len(specs) == 1 and len(specs[0].size) == 2


def _pick(tap: str, indices: list[int], count: int) -> Paths:
    """The levels ``indices`` of a tap that has ``count``."""
    first, last = indices[0], indices[-1]
    if indices == list(range(count)):
        return [tap]
    if len(indices) == 1:
        return [f'{tap}[{first}]']
    if indices == list(range(first, last + 1)):
        return [f'{tap}[{first or ""}:{last + 1 if last + 1 < count else ""}]']
    return [f'{tap}[{i}]' for i in indices]


def _layer(survey: Survey, tap: str) -> str:
    """A layer that gives what ``tap`` reads as its whole output, which can be replaced.

    Raises:
        ValueError: there is none.
    """
    path = parse_tap(tap)
    if not path.index:
        return tap
    (spec,) = survey.specs(tap)
    within = [
        inner
        for inner in survey.order
        if inner.startswith(f'{path.module}.') and survey.find(inner)[:1] == [spec] and len(survey.find(inner)) == 1
    ]
    if not within:
        raise ValueError(
            f'expected a layer of {type(survey.model).__name__} that gives {tap!r} as its whole output, to refine it, '
            'found none; take the method without SoKD, or one on features'
        )
    return max(within, key=survey.order.__getitem__)
