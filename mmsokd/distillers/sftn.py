"""SFTN: a teacher that is trained together with branches of its student."""

import inspect
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import ModuleList
from torch import Tensor, nn

from mmsokd.checks import check_bool, check_integer, check_keys, check_number, telling
from mmsokd.distillers.adapting import shape_text
from mmsokd.distillers.build import build_model, load_weights
from mmsokd.distillers.cutting import Cutter, Given, handing, timing
from mmsokd.distillers.face import Face
from mmsokd.distillers.parts import build_part
from mmsokd.distillers.schedule import Clock
from mmsokd.distillers.stages import check_transform, parse_stages
from mmsokd.distillers.teacher import check_no_pace
from mmsokd.distillers.term import STUDENT, Term
from mmsokd.registry import MODELS
from mmsokd.taps import Features, FeatureSpec, FeatureTap, Tap, as_map, find_module, parse_tap, probe

TEACHER = 'teacher'
_KL = dict(tau=1.0, loss_weight=3.0)
_KL_KEYS = ('tap', 'student_tap', 'teacher_tap', 'tau', 'activation', 'adapter', 'loss_weight')
_TRANSFORM = dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))


@MODELS.register_module()
class SFTNTeacherTrainer(Face):
    r"""Trains ``teacher`` together with branches of ``student``, so that this student will be able to follow it.

    After "Learning Student-Friendly Teacher Networks for Knowledge Distillation" (Park et al., arXiv:2102.07650), of
    which the abstract and somebody's notes were read, not the text. Branch i runs the teacher's stages 1..i, a
    transform, and the student's stages i + 1..N with its head. With the teacher's predictions :math:`q_T` and the
    branches' :math:`q_i` the loss is

    .. math::
        \lambda_T L(q_T) + \frac{\lambda_{KL}}{N - 1} \sum_i \mathrm{KL}(q_i \,\|\, q_T)
        + \frac{\lambda_R}{N - 1} \sum_i L(q_i)

    where L is a model's own task loss and the N - 1 are the ``stages`` that are given. The weights 1, 3, 1 and the
    temperature 1 are from recollection, unverified.

    The outcome is :attr:`teacher`, which this model *is* in ``predict`` and ``tensor`` mode: from
    ``export_part(checkpoint, 'teacher')`` any distillation goes on. The branches see no picture, so that only the
    teacher's data preprocessor counts.

    [ours] For detectors and segmentors the branches are cut at the backbone, and each has the student's own neck and
    head; where these read an earlier stage too, they get that stage's transformed feature. Several levels of logits
    are summed.

    Args:
        teacher: the model to train, as a distiller's ``student`` is given; ``dict(cfg=..., checkpoint=...)`` to
            fine-tune one, which for the paper nearly matches training from scratch.
        student: a plain model, of which the branches are copies from a stage on. It is not trained itself.
        stages: where the branches leave the teacher, in the order of the forward: paths, such as
            ``'backbone.layer1'``, or ``dict(teacher=..., student=...)`` where they differ. The student's layer gives
            one map; the teacher's one, or tokens on a grid.
        kl: the logits: ``tap``, or ``student_tap`` and ``teacher_tap``; ``tau`` (1) and ``activation`` of
            :class:`~mmsokd.losses.KDLoss`; ``loss_weight`` (3), as a term's; ``adapter``, for maps of two sizes.
        teacher_weight: :math:`\lambda_T`.
        branch_weight: :math:`\lambda_R`.
        detach_teacher: whether :math:`q_T` is a constant in the KL. The paper's choice is not known; by default it is
            not, since the teacher is to bend.
        share_head: whether the branches share what follows the backbone [ours].
        transform: an adapter's config; by default 1x1 convolution, BatchNorm and ReLU, with a strided or transposed
            convolution before them where the strides differ [ours: the paper's kernel is not known].
        probe_size: side of the noise image, in pixels, on which shapes are inferred.
        data_preprocessor: the config's top-level one, handed on to the teacher.

    Raises:
        ValueError, TypeError, FileNotFoundError: something in the config cannot be; the message tells the key, what
            was found, what was expected and the nearest valid name.
    """

    trains = TEACHER

    def __init__(
        self,
        teacher: Any = None,
        student: Any = None,
        stages: Sequence[str | Mapping[str, str]] | None = None,
        kl: Mapping[str, Any] | None = None,
        teacher_weight: float = 1.0,
        branch_weight: float = 1.0,
        detach_teacher: bool = False,
        share_head: bool = False,
        transform: Mapping = _TRANSFORM,
        probe_size: int = 256,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        **unknown: Any,
    ) -> None:
        check_keys('model', unknown, list(inspect.signature(SFTNTeacherTrainer).parameters)[:-1])
        check_number('teacher_weight', teacher_weight)
        check_number('branch_weight', branch_weight)
        check_bool('detach_teacher', detach_teacher)
        check_bool('share_head', share_head)
        check_integer('probe_size', probe_size, 1)
        super().__init__(_build_teacher(teacher, data_preprocessor), data_preprocessor, init_cfg)
        self.teacher_weight = teacher_weight
        self.branch_weight = branch_weight
        self.detach_teacher = detach_teacher
        self.kl = _build_kl(kl)
        self._stages = parse_stages(stages)
        self._connect(build_model('student', student, data_preprocessor), transform, share_head, probe_size)

    def _connect(self, student: nn.Module, transform: Mapping, share_head: bool, size: int) -> None:
        """Dry-run both models, cut the branches, and build what depends on their shapes."""
        for stage in self._stages:
            with telling(f'{stage.key}.teacher', 'tap'):
                find_module(self.teacher, parse_tap(stage.teacher).module)
        self.kl.find_taps({STUDENT: student, TEACHER: self.teacher})
        self._taps = [*(stage.teacher for stage in self._stages), self.kl.teacher_tap]
        with telling(TEACHER), timing(self.teacher) as (_, ended):
            theirs = probe(self.teacher, self._taps, size)
        self._warn_of_frozen_stages(ended)
        self._tap = FeatureTap(self.teacher, self._taps, copied=theirs.overwritten)
        cutter = Cutter(student, {f'{s.key}.student': s.student for s in self._stages}, self.kl.student_tap, size)
        ours = cutter.probe
        self.branches = ModuleList(cutter.cut(i) for i in range(len(self._stages)))
        self._shared = self._share_head() if share_head else []
        self._branch_taps = [FeatureTap(x, [self.kl.student_tap], copied=ours.overwritten) for x in self.branches]
        self._calls = {TEACHER: theirs.calls, STUDENT: ours.calls}
        self._specs = [
            (_one_map(f'{s.key}.teacher', theirs.specs[s.teacher]), *ours.specs[s.student]) for s in self._stages
        ]
        self.transforms = ModuleList(_build_transform(transform, *specs) for specs in self._specs)
        self.kl.build(ours.specs[self.kl.student_tap], theirs.specs[self.kl.teacher_tap])

    def _warn_of_frozen_stages(self, ended: Mapping[str, int]) -> None:
        """Tell which branches leave the teacher where it does not learn yet; ``ended``: when each module's call did."""
        frozen = []
        for stage in self._stages:
            end = ended.get(parse_tap(stage.teacher).module, math.inf)
            before = (module for name, module in self.teacher.named_modules() if ended.get(name, math.inf) <= end)
            if not any(p.requires_grad for module in before for p in module.parameters(recurse=False)):
                frozen.append(stage.teacher)
        if frozen:
            print_log(
                f'stages: expected parameters of the teacher that learn before {frozen}, found none (frozen_stages of '
                'its backbone?): the branches from there learn, and do not bend the teacher',
                'current',
                logging.WARNING,
            )

    def _share_head(self) -> list[str]:
        """Give all branches the first one's parts, but for those that are cut; the names of these parts.

        They are children of the first branch alone: a parameter that is found twice would be in two groups of an
        optimizer. The others hold them as plain attributes.
        """
        first, *others = self.branches
        shared = []
        for name, module in list(first.named_children()):
            parts = [getattr(branch, name) for branch in self.branches]
            if not any(isinstance(x, Given) for part in parts for x in part.modules()):
                shared.append(name)
                for branch in others:
                    delattr(branch, name)
                    vars(branch)[name] = module
        return shared

    def _borrowed(self, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        """Where in a state dict every branch but the first has the shared parts."""
        for i, branch in list(enumerate(self.branches))[1:]:
            for name in self._shared:
                yield f'{prefix}branches.{i}.{name}.', getattr(branch, name)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Every branch is whole in a checkpoint, so that any of them can be exported."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for path, module in self._borrowed(prefix):
            module.state_dict(destination=destination, prefix=path, keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        borrowed = tuple(path for path, _ in self._borrowed(prefix))
        for key in [key for key in state_dict if key.startswith(borrowed)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """The teacher's own losses, and of each branch ``sftn.loss_branch<i>`` and ``sftn.loss_kl<i>``, all weighted.

        Args:
            inputs: the preprocessed batch (N, 3, H, W).
            data_samples: one a picture, with the annotations.

        Raises:
            FloatingPointError: a loss is NaN or Inf; names it.
        """
        with self._tap as tapped:
            own = self.teacher(inputs, data_samples, mode='loss')
        seen = self._read(TEACHER, tapped, self._taps)
        # mmpretrain's only loss is called as MMEngine calls the sum in the log, and would stand in its place there.
        losses = {
            'teacher.loss' if name == 'loss' else name: _scaled(value, self.teacher_weight) if 'loss' in name else value
            for name, value in own.items()
        }
        logits = [x.detach() if self.detach_teacher else x for x in seen[self.kl.teacher_tap]]
        feats = dict(enumerate(self._transform(seen, inputs.shape[-2:])))
        kl_weight = self.kl.weight(Clock.now())
        count = len(self.branches)
        for i, (branch, tap) in enumerate(zip(self.branches, self._branch_taps, strict=True)):
            with handing(branch, feats), tap as tapped:
                task, _ = branch.parse_losses(branch(inputs, data_samples, mode='loss'))
            ours = self._read(STUDENT, tapped, [self.kl.student_tap])[self.kl.student_tap]
            losses[f'sftn.loss_branch{i + 1}'] = self.branch_weight / count * task
            losses[f'sftn.loss_kl{i + 1}'] = kl_weight / count * self._divergence(ours, logits, inputs.shape[-2:])
        self._guard.watch(losses)
        return losses

    def _transform(self, seen: Mapping[Tap, list[Tensor]], size: tuple[int, int]) -> Iterable[Tensor]:
        """Each stage's feature as the student has it."""
        for stage, transform, (theirs, ours) in zip(self._stages, self.transforms, self._specs, strict=True):
            target = tuple(math.ceil(side / ours.stride) for side in size) if theirs.size != ours.size else None
            yield transform(as_map(seen[stage.teacher][0], theirs, size), target)

    def _divergence(self, branch: list[Tensor], teacher: list[Tensor], size: tuple[int, int]) -> Tensor:
        """KL(q_i || q_T): against the order of distillation, where the teacher comes first."""
        branch, teacher = self.kl.select(branch, teacher, size)
        return self.kl(teacher, self.kl.adapt(branch, teacher))

    def _read(self, model: str, tapped: Features, taps: list[Tap]) -> dict[Tap, list[Tensor]]:
        for module, count in tapped.calls.items():
            expected = self._calls[model][module]
            if count != expected:
                raise ValueError(
                    f"{model}: tap '{module}': expected {expected} calls of it in a training forward, as in the dry "
                    f'run, found {count}; tap a layer that every forward calls alike'
                )
        return {tap: tapped[tap] for tap in taps}


def _build_teacher(source: Any, data_preprocessor: dict | None) -> nn.Module:
    check_no_pace(TEACHER, source)
    model = build_model(TEACHER, source, data_preprocessor)
    given = source if isinstance(source, Mapping) and 'type' not in source else {}
    if given.get('checkpoint') is not None:
        trust = given.get('trust_checkpoint', False)
        check_bool('teacher.trust_checkpoint', trust)
        load_weights('teacher.checkpoint', model, given['checkpoint'], trust)
        model.is_init = True  # MMEngine's Runner leaves these weights alone
    return model


def _build_kl(cfg: Any) -> Term:
    if not isinstance(cfg, Mapping):
        raise ValueError(f"kl: expected a dict with 'tap', found {cfg!r}")
    check_keys('kl', cfg, _KL_KEYS)
    return Term('loss_kl', dict(_KL, type='mmsokd.KDLoss') | dict(cfg), [TEACHER], key='kl')


def _one_map(key: str, specs: list[FeatureSpec]) -> FeatureSpec:
    if len(specs) != 1 or len(specs[0].size) != 2:
        raise ValueError(f'{key}: expected a layer that gives one map, found {[shape_text(spec) for spec in specs]}')
    return specs[0]


def _build_transform(cfg: Mapping, teacher: FeatureSpec, student: FeatureSpec) -> nn.Module:
    check_transform(cfg)
    if teacher.size != student.size:
        cfg = dict(dict(resize='conv'), **cfg)
    ratio = student.size[0] / teacher.size[0]
    return build_part(
        'transform', cfg, 'adapters', in_channels=teacher.channels, out_channels=student.channels, stride_ratio=ratio
    )


def _scaled(value: Tensor | list[Tensor], weight: float) -> Tensor | list[Tensor]:
    return [weight * x for x in value] if isinstance(value, list | tuple) else weight * value
