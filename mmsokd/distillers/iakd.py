"""IAKD: during training, stages of the student make way for the frozen teacher's, by chance."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmsokd.augment.policy import Seeded
from mmsokd.checks import telling
from mmsokd.distillers.base import Distiller
from mmsokd.distillers.parts import build_part
from mmsokd.distillers.schedule import Clock, WeightSchedule
from mmsokd.distillers.stages import Passage, Stage, check_transform, parse_stages, pass_through
from mmsokd.distillers.teacher import Teacher
from mmsokd.distillers.term import STUDENT
from mmsokd.registry import MODELS
from mmsokd.taps import in_eval, parse_tap, paths_of

TEACHER = 'teacher'
# Half of the stages at first, none for the last quarter of the training, in which the student learns as it is.
_PROBABILITY = ((0.0, 0.5), (0.75, 0.0))


class Seam(BaseModule):
    """The teacher's stage in the place of the student's, between two maps into its channels and out of them.

    The stage is looked up in the teacher and is no child of this: it is neither trained nor saved, and a copy shares
    it. It is in eval mode.

    Args:
        stage: what stands for what.
        student, teacher: what the dry runs saw go through both.
        guard: the teacher.
        transform: an adapter's config, or None for a 1x1 convolution and BatchNorm, with a ReLU where what is made has
            no negative values.

    Raises:
        ValueError: the strides differ, or the way through the teacher's stage does not lead to the student's size.
    """

    def __init__(
        self, stage: Stage, student: Passage, teacher: Passage, guard: Teacher, transform: Mapping | None
    ) -> None:
        super().__init__()
        _check_strides(stage, student, teacher)
        self.stage = stage
        self._guard = guard
        ways = {
            'entry': (student.given.shape[1], teacher.given.shape[1], bool((teacher.given < 0).any())),
            'exit': (teacher.spec.channels, student.spec.channels, student.spec.signed),
        }
        if transform is not None:
            check_transform(transform)
            if transform.get('resize') is not None:
                raise ValueError(
                    f'transform.resize: expected none, since both networks have maps of one size at a seam, found '
                    f'{transform["resize"]!r}'
                )
        for name, (before, after, signed) in ways.items():
            cfg = _plain(signed) if transform is None else transform
            self.add_module(name, build_part('transform', cfg, 'adapters', in_channels=before, out_channels=after))
        self._rehearse(student)

    @torch.no_grad()
    def _rehearse(self, student: Passage) -> None:
        """Once on what went into the student's stage."""
        with telling(self.stage.key), in_eval(self):
            device = next((p.device for p in self.parameters()), None)
            found = self(student.given.to(device))
            expected = (len(student.given), student.spec.channels, *student.spec.size)
            if not isinstance(found, Tensor) or tuple(found.shape) != expected:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"expected a map of shape {expected}, as of the student's '{self.stage.student}', found {shape} "
                    f"by the teacher's '{self.stage.teacher}'"
                )

    def forward(self, feat: Tensor) -> Tensor:
        """(N, C, H, W), as the student's stage takes it -> as that gives it, with a graph through the frozen stage."""
        return self.exit(self._guard.module.get_submodule(self.stage.teacher)(self.entry(feat)))


class StageSwap(Seeded):
    """The seams, and which of them are open in a step.

    A draw follows from the run's seed and the iteration, and is one for all ranks: nothing of it is to be saved.

    Args:
        seams: one a stage.
        probability: as a term's ``loss_weight``, at most 1.

    Raises:
        ValueError: it is not.
    """

    def __init__(self, seams: Sequence[Seam], probability: Any) -> None:
        super().__init__(shared=True)
        self.seams = ModuleList(seams)
        self.probability = WeightSchedule('probability', probability)
        if self.probability.highest > 1:
            raise ValueError(f'probability: expected at most 1, found {self.probability.highest} in {probability!r}')

    def draw(self) -> list[bool]:
        """Which stages are swapped now; none in eval mode."""
        clock = Clock.now()
        chance = self.probability(clock)
        if not self.training or chance == 0:
            return [False] * len(self.seams)
        generator = torch.Generator().manual_seed((self._seed() + 7_919 * clock.iter + 32_452_843) % 2**63)
        return (torch.rand(len(self.seams), generator=generator) < chance).tolist()

    @contextmanager
    def swapped(self, student: nn.Module, drawn: Sequence[bool]) -> Iterator[None]:
        """Within, the student's ``drawn`` stages run as the teacher's.

        Raises:
            ValueError: such a stage lies in a checkpointed layer, whose forward runs again when this is over.
        """
        wrapped: list[tuple[nn.Module, Any]] = []
        try:
            for seam in (seam for seam, is_drawn in zip(self.seams, drawn, strict=True) if is_drawn):
                _check_parents(student, seam.stage)
                module = student.get_submodule(seam.stage.student)
                wrapped.append((module, vars(module).get('forward')))
                module.forward = seam.forward
            yield
        finally:
            for module, own in wrapped:
                del module.forward
                if own is not None:
                    module.forward = own

    def untouched(self, student: nn.Module, drawn: Sequence[bool]) -> Tensor | float:
        """Zero, with a graph to what does not run: DDP waits for all parameters' gradients."""
        pairs = zip(self.seams, drawn, strict=True)
        idle = [student.get_submodule(seam.stage.student) if is_drawn else seam for seam, is_drawn in pairs]
        return sum(p.sum() * 0.0 for module in idle for p in module.parameters() if p.requires_grad)


@MODELS.register_module()
class IAKDDistiller(Distiller):
    r"""A :class:`Distiller` in whose training steps some of the student's stages are the frozen teacher's.

    After "Interactive Knowledge Distillation" (Fu et al., arXiv:2007.01476), of which the abstract was read: blocks of
    the student are randomly replaced by the corresponding ones of the teacher. With the teacher's stage :math:`T_i`,
    the student's :math:`S_i`, and maps :math:`a_i, b_i` at the seams,

    .. math:: x_i = \begin{cases} b_i(T_i(a_i(x_{i-1}))) & \text{with probability } p \\
        S_i(x_{i-1}) & \text{else} \end{cases}

    one draw a stage and step, for the whole batch and all ranks. The gradient passes the frozen stage, so that the
    student's earlier stages learn what the teacher can go on with. The maps, one draw a step, whole stages in the place
    of blocks, and the schedule are ours.

    The maps belong to the distiller: an exported student has none. There need be no ``terms``; those that there are see
    what the rest of the student sees, also where a swapped stage is tapped. The teacher's own forward for them, with
    what ``refine`` does to it, is another one. In eval mode nothing is swapped.

    Args:
        stages: what stands for what: paths, such as ``'backbone.layer2'``, or ``dict(teacher=..., student=...)`` where
            they differ. Each layer takes one map and gives one, by the same stride in both networks.
        probability: p, as a term's ``loss_weight`` is given: a number, knots or a ramp, at most 1; by default from 0.5
            at the start to 0 at three quarters of the training.
        transform: an adapter's config for the maps at the seams; by default a 1x1 convolution, BatchNorm and, where
            what is made has no negative values, ReLU.
        kwargs: :class:`Distiller`'s, with one ``teacher``. Its ``autocast``, ``compile`` and ``stream`` are for what
            the terms read of it; its stages at the seams are run as the student is.

    Raises:
        ValueError: there is not one teacher, a stage is none, their strides differ, they contain one another, or a term
            taps within one.
    """

    needs_terms = False
    may_cache = False  # its stages are run within the student
    needs_whole_teacher = True  # whose stages are swapped in

    def __init__(
        self,
        *args: Any,
        stages: Sequence[str | Mapping[str, str]] | None = None,
        probability: Any = _PROBABILITY,
        transform: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if list(self._teachers) != [TEACHER]:
            raise ValueError(
                f'teacher: expected one, whose stages are swapped in, found {list(self._teachers) or "none"}'
            )
        guard = self._teachers[TEACHER]
        found = parse_stages(stages, whole=(STUDENT, TEACHER))
        for side in (STUDENT, TEACHER):
            _check_apart({f'{stage.key}.{side}': getattr(stage, side) for stage in found}, is_once=side == STUDENT)
        self._check_taps([stage.student for stage in found])
        for stage in found:
            _check_blocks(self.student, stage)
        passages = [
            pass_through(model, {f'{stage.key}.{side}': getattr(stage, side) for stage in found}, self.probe_size)
            for side, model in ((STUDENT, self.student), (TEACHER, guard.module))
        ]
        seams = [
            Seam(stage, passages[0][stage.student], passages[1][stage.teacher], guard, transform) for stage in found
        ]
        self.swap = StageSwap(seams, probability)

    def _check_taps(self, stages: Sequence[str]) -> None:
        """A layer within a stage does not run where that is swapped."""
        readers = (*self.terms.values(), *([self.refine.regressor] if self._at is not None else []))
        taps = [(term.key_of('student_tap'), term.student_tap) for term in readers]
        taps += [(term.key_of('teacher_tap'), term.teacher_tap) for term in readers if term.teacher_name == STUDENT]
        for key, tap in taps:
            for path in paths_of(tap):
                module = parse_tap(path).module
                around = [stage for stage in stages if module.startswith(f'{stage}.')]
                if around:
                    raise ValueError(
                        f"{key}: expected a layer that runs in every step, found '{path}' within '{around[0]}', which "
                        "makes way for the teacher's; tap that stage itself"
                    )

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """As :meth:`Distiller.loss`, of the student as this step has it; ``iakd.swapped``: which part of the stages.

        Args:
            inputs: the preprocessed batch (N, 3, H, W).
            data_samples: one a picture, with the annotations.
        """
        drawn = self._draw(inputs)
        with self.swap.swapped(self.student, drawn):
            losses = super().loss(inputs, data_samples)
        return self._finish(losses, drawn, inputs)

    @torch.compiler.disable
    def _draw(self, inputs: Tensor) -> list[bool]:
        drawn = self.swap.draw()
        if any(drawn):
            self._teachers[TEACHER].make_ready(inputs.device)
        return drawn

    @torch.compiler.disable
    def _finish(self, losses: dict[str, Any], drawn: Sequence[bool], inputs: Tensor) -> dict[str, Any]:
        """Every parameter in the graph, by a zero that is added to some loss, and the diagnostic."""
        name = next(name for name in losses if 'loss' in name)
        value, zero = losses[name], self.swap.untouched(self.student, drawn)
        losses[name] = [value[0] + zero, *value[1:]] if isinstance(value, list | tuple) else value + zero
        losses['iakd.swapped'] = inputs.new_full((), sum(drawn) / len(drawn), dtype=torch.float32)
        return losses


def _plain(signed: bool) -> dict:
    norm = dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'))
    return norm if signed else dict(norm, act_cfg=dict(type='ReLU'))


def _check_apart(paths: Mapping[str, str], is_once: bool) -> None:
    """No stage within another; of the student none twice."""
    for key, path in paths.items():
        for other_key, other in paths.items():
            if key != other_key and (path.startswith(f'{other}.') or (is_once and path == other)):
                raise ValueError(f"{key}: expected a stage beside the others, found '{path}' within {other_key}")


def _check_strides(stage: Stage, student: Passage, teacher: Passage) -> None:
    ours, theirs = (p.given.shape[-1] / p.spec.size[-1] for p in (student, teacher))
    if round(ours, 1) != round(theirs, 1):
        raise ValueError(
            f"{stage.key}: expected two layers of one stride, found {ours:.3g} in the student's '{stage.student}' and "
            f"{theirs:.3g} in the teacher's '{stage.teacher}'"
        )


def _check_blocks(student: nn.Module, stage: Stage) -> None:
    """OpenMMLab's blocks checkpoint what is within them, where ``with_cp`` is set; backbones only hand that on."""
    names = stage.student.split('.')
    for i in range(1, len(names)):
        path = '.'.join(names[:i])
        checkpointed = [module for module in student.get_submodule(path).modules() if getattr(module, 'with_cp', False)]
        if checkpointed == [student.get_submodule(path)]:
            raise ValueError(
                f"{stage.key}.student: expected a stage outside of checkpointed blocks, found '{stage.student}' within "
                f"'{path}', whose with_cp is True: its forward runs again in the backward, when the stage is the "
                "student's; swap whole blocks or stages"
            )


def _check_parents(student: nn.Module, stage: Stage) -> None:
    names = stage.student.split('.')
    for i in range(1, len(names)):
        path = '.'.join(names[:i])
        if 'forward' in vars(student.get_submodule(path)):
            raise ValueError(
                f"{stage.key}: expected a stage outside of checkpointed layers, found '{stage.student}' within "
                f"'{path}': its forward runs again in the backward, when the stage is the student's; checkpoint the "
                'stages themselves'
            )
