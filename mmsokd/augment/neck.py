"""DAFA: the teacher's feature, refined by operations that a learned policy draws."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmsokd.augment.control import ControlVariate
from mmsokd.augment.feature_ops import FEATURE_OPS, Randomness, rescaled_channel_drop
from mmsokd.augment.policy import SUB_POLICIES, Draw, Policy
from mmsokd.augment.refining import FeatureRefiner
from mmsokd.checks import check_bool, check_choice, check_positive
from mmsokd.registry import MODELS
from mmsokd.relax import (
    PROBABILITY_MARGIN,
    bernoulli_scores,
    categorical_scores,
    conditional_bernoulli_scores,
    conditional_categorical_scores,
    relax_gradient,
)


@MODELS.register_module()
class FeatureAugmentationNeck(FeatureRefiner):
    """Differentiable Automatic Feature Augmentation, after SoKD (arXiv 2409.18785).

    Draws a sub-policy of two operations for each mini-batch and applies it to every level of the teacher's feature.
    While it is ``searching``, its policy descends on ``L_aug = 1/2 |F~_t - stopgrad(Phi_s(F_s))|^2``: it draws the
    teacher *towards* the student.

    Args:
        at: the teacher's layer whose output is replaced, so that its logits follow. Feature terms that tap the teacher
            before it, and all of them where it is None, have their own tapped feature refined beside its forward.
        student_at: the student's layer that ``at`` is compared with; ``at`` by default.
        resize: how the student's map of another size is brought to the teacher's, as in
            :class:`~mmsokd.adapters.ConvAdapter`; None refuses it.
        teacher: whose layer ``at`` is, where there are several teachers.
        estimator: gradient of the discrete choices: ``'straight_through'`` Gumbel-softmax and relaxed Bernoulli [a
            public review], or ``'relax'`` [authors' fork].
        magnitude_grad: gradient of the levels: ``'straight_through'``, dF~/dm = 1 where the operation fires [authors'
            fork], or ``'pathwise'``, the true derivative where the operation has one [ours].
        temperature: of the relaxations.
        per_sample: one draw a sample instead of one a mini-batch [ours].
        per_term: one policy a term instead of one for all [ours].
        rescale_drop: rescale what ChannelDrop leaves (inverted dropout) [ours].
        shared_draws: under DDP one draw for all ranks instead of one a rank [ours].

    Raises:
        ValueError: an option is not valid.
    """

    def __init__(
        self,
        at: str | None = None,
        student_at: str | None = None,
        resize: str | None = None,
        teacher: str | None = None,
        estimator: str = 'straight_through',
        magnitude_grad: str = 'straight_through',
        temperature: float = 0.5,
        per_sample: bool = False,
        per_term: bool = False,
        rescale_drop: bool = False,
        shared_draws: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_choice('refine.estimator', estimator, ['straight_through', 'relax'])
        check_choice('refine.magnitude_grad', magnitude_grad, ['straight_through', 'pathwise'])
        check_positive('refine.temperature', temperature)
        switches = dict(per_sample=per_sample, per_term=per_term, rescale_drop=rescale_drop, shared_draws=shared_draws)
        for key, value in switches.items():
            check_bool(f'refine.{key}', value)
        for key, value in (('at', at), ('student_at', student_at)):
            if value is not None and not isinstance(value, str):
                raise ValueError(
                    f"refine.{key}: expected the path of a layer, such as 'backbone.layer3', found {value!r}"
                )
        for key, value in (('student_at', student_at), ('resize', resize), ('teacher', teacher)):
            if value is not None and at is None:
                raise ValueError(f"refine.{key}: expected None without 'at', found {value!r}")
        self.at = at
        self.student_at = student_at
        self.resize = resize
        self.teacher = teacher
        self.estimator = estimator
        self.magnitude_grad = magnitude_grad
        self.temperature = temperature
        self.per_sample = per_sample
        self.per_term = per_term
        self.policy = Policy(shared_draws)
        self.control = ControlVariate(len(SUB_POLICIES) * 3) if estimator == 'relax' else None
        self.ops = dict(FEATURE_OPS)
        if rescale_drop:
            self.ops['ChannelDrop'] = self.ops['ChannelDrop']._replace(function=rescaled_channel_drop)
        self.searching = False
        self._pending: list[tuple[dict[str, Tensor], Any]] = []

    # ---- draw, then apply -----------------------------------------------------------------------------------------

    def sample(self, batch_size: int, device: torch.device | str = 'cpu') -> Draw:
        """Draw for one step. While searching, the draw carries fresh leaves of the policy on ``device``."""
        chi = self._exposed
        if chi is None and self.searching:
            chi = {
                name: value.to(device, non_blocking=True).clone().requires_grad_()
                for name, value in self.policy.tensors().items()
            }
        return self.policy.sample(batch_size if self.per_sample else 1, chi, advance=not self.is_exposed)

    def forward(self, feats: Sequence[Tensor], draw: Draw) -> list[Tensor]:
        """``F~_t``: the levels (N, C, H, W), each refined by the same draw.

        While searching, the result is float32, so that small gradients survive, and carries a graph to ``draw.chi``;
        else it has the feature's dtype and no graph.
        """
        if draw.chi is None:
            with torch.no_grad():
                return [self._refine(feat.detach(), draw) for feat in feats]  # no_grad alone: no op, the same tensor
        with torch.enable_grad(), torch.autocast(feats[0].device.type, enabled=False):
            return [self._search_refine(feat.detach().float(), draw) for feat in feats]

    def refine(self, feats: Sequence[Tensor], target: Sequence[Tensor], draw: Draw) -> list[Tensor]:
        """:meth:`forward`, whatever the student has."""
        return self(feats, draw)

    def _refine(self, feat: Tensor, draw: Draw) -> Tensor:
        """Only what fires is computed. Everything here that steers Python lies on the host."""
        fires = draw.fires
        for i in range(2):
            for name, rows in _by_op(draw, i, fires[:, i] > 0).items():
                levels = draw.magnitudes[rows, i].to(feat.device, non_blocking=True)
                feat = self._run(name, feat, levels, rows, draw)
        return feat

    def _search_refine(self, feat: Tensor, draw: Draw) -> Tensor:
        """The hard value, with the gradients of the estimators."""
        original = feat
        index = draw.choice.to(feat.device, non_blocking=True)
        fires = draw.fires.to(feat.device, non_blocking=True)  # (B, 2)
        magnitude = draw.chi['magnitude'][index].clamp(0, 1)  # (B, 2)
        relaxed = self._relaxed(draw, feat.device)
        straight = 0.0 * magnitude[:, 0]  # with a graph, whatever fires
        for i in range(2):
            is_open = draw.fires[:, i] > 0  # on the host: it decides what is computed
            if relaxed is None and not is_open.any():
                continue
            before = feat
            after = feat
            for name, rows in _by_op(draw, i, torch.ones(len(draw.choice), dtype=torch.bool)).items():
                pathwise = self.magnitude_grad == 'pathwise' and self.ops[name].differentiable
                on_device = rows.to(feat.device, non_blocking=True)
                levels = magnitude[on_device, i]
                # What does not fire shows its value to the gate's gradient alone.
                with torch.set_grad_enabled(bool(is_open.any())):
                    after = self._run(name, after, levels if pathwise else levels.detach(), rows, draw)
                if not pathwise:
                    straight = straight.index_add(0, on_device, fires[on_device, i] * levels)
            if is_open.all():
                feat = after
            elif is_open.any():
                feat = torch.where(_per_sample(fires[:, i], feat) > 0, after, before)
            if relaxed is not None:
                # Both values are known, so the gate has its gradient also where it is closed.
                feat = _Steered.apply(feat, relaxed[1][:, i], after, before)
        # F~ <- stopgrad(F~ - sum b m) + sum b m: the value stays, dF~/dm = b
        feat = _Steered.apply(feat, straight, None, None)
        if relaxed is not None:
            # Sub-policies that were not drawn count as the identity [ours]; all 36 would have to be computed else.
            feat = _Steered.apply(feat, relaxed[0], feat, original)
        return feat

    def _relaxed(self, draw: Draw, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The soft weight of the drawn sub-policy (B,) and the soft gates of its operations (B, 2)."""
        if self.estimator == 'relax':
            return None
        u_choice, u_gate = (u.to(device, non_blocking=True) for u in draw.uniforms)
        index, rows = draw.choice.to(device, non_blocking=True), torch.arange(len(draw.choice), device=device)
        weight = (categorical_scores(draw.chi['alpha'], u_choice) / self.temperature).softmax(-1)[rows, index]
        gates = torch.sigmoid(bernoulli_scores(draw.chi['beta'], u_gate) / self.temperature)[rows, index]
        return weight, gates

    def _run(self, name: str, feat: Tensor, levels: Tensor, rows: Tensor, draw: Draw) -> Tensor:
        """One operation on the samples ``rows`` of the batch (row 0 stands for all of it where B is 1)."""
        op = self.ops[name]
        rand = draw.randomness(feat, noise=name == 'Noise')
        if len(draw.choice) == 1:
            return op.function(feat, op.strength(levels).expand(len(feat)), rand)
        index = rows.to(feat.device, non_blocking=True)
        noise = None if rand.noise is None else rand.noise[index]
        part = Randomness(rand.centre[index], rand.order, rand.chosen, rand.keep[index], noise)
        return feat.index_copy(0, index, op.function(feat[index], op.strength(levels), part))

    # ---- search ---------------------------------------------------------------------------------------------------

    def search(self, objective: Tensor, draw: Draw) -> None:
        """Take the policy's gradient of ``L_aug`` and keep it, detached, for :meth:`pop_gradient`.

        Args:
            objective: the scalar L_aug, with a graph to ``draw.chi`` from :meth:`forward`.
            draw: what :meth:`forward` was given.
        """
        names = list(draw.chi)
        with torch.autocast(objective.device.type, enabled=False):  # the control variate is made of matrix products
            values = torch.autograd.grad(objective, [draw.chi[n] for n in names], allow_unused=True)
            gradient = {
                n: torch.zeros_like(draw.chi[n]) if g is None else g for n, g in zip(names, values, strict=True)
            }
            if self.control is not None:
                gradient.update(self._relax(objective.detach(), draw))
        self.push_gradient(gradient)

    def push_gradient(self, gradient: dict[str, Tensor]) -> None:
        """Keep a gradient, detached, for :meth:`pop_gradient`."""
        self._pending.append(_to_host(gradient))

    def _relax(self, objective: Tensor, draw: Draw) -> dict[str, Tensor]:
        """RELAX's gradients of alpha, beta and the control variate's weights; both draws as one vector of 36 * 3."""
        device = objective.device
        alpha, beta = draw.chi['alpha'], draw.chi['beta']
        u_choice, u_gate = (u.to(device, non_blocking=True) for u in draw.uniforms)
        generator = torch.Generator().manual_seed(draw.seed + 2)
        fresh = [torch.rand(u.shape, generator=generator) for u in draw.uniforms]
        fresh_choice, fresh_gate = (u.to(device, non_blocking=True) for u in fresh)
        choice, gates = (x.to(device, non_blocking=True) for x in (draw.choice, draw.gates))
        scores = _join(categorical_scores(alpha, u_choice), bernoulli_scores(beta, u_gate))
        conditional = _join(
            conditional_categorical_scores(alpha.expand_as(u_choice), choice, fresh_choice),
            conditional_bernoulli_scores(beta.expand_as(u_gate), gates, fresh_gate),
        )
        probability = beta.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
        log_p = alpha.log_softmax(0)[choice].sum()
        log_p = log_p + (gates * probability.log() + (1 - gates) * torch.log1p(-probability)).sum()
        weights = {
            name: w.to(device, non_blocking=True).clone().requires_grad_() for name, w in self.control.tensors().items()
        }

        def control(vectors: Tensor) -> Tensor:
            return torch.stack([self.control.apply_with(weights, vector) for vector in vectors]).mean()

        chi, network = relax_gradient(
            objective, log_p, control, scores, conditional, [alpha, beta], list(weights.values())
        )
        return {'alpha': chi[0], 'beta': chi[1], **dict(zip(weights, network, strict=True))}

    def pop_gradient(self) -> dict[str, Tensor] | None:
        """The mean of the gradients since the last call, on the host; None if there was none."""
        if not self._pending:
            return None
        for _, event in self._pending:
            if event is not None:
                event.synchronize()  # this copy alone: the main backward behind it goes on
        gradients = [gradient for gradient, _ in self._pending]
        self._pending = []
        return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}

    def searched_tensors(self) -> dict[str, Tensor]:
        """The policy's; the draws within :meth:`exposed` carry its leaves, and the step that follows has their draw."""
        return self.policy.tensors()

    def search_parameters(self) -> dict[str, Tensor]:
        """The live host tensors that a search optimises in place."""
        return {**self.policy.tensors(), **(self.control.tensors() if self.control is not None else {})}


def _by_op(draw: Draw, position: int, wanted: Tensor) -> dict[str, Tensor]:
    """Operation -> the rows of the draw that have it at ``position``, of those ``wanted``."""
    rows: dict[str, list[int]] = {}
    for row, (choice, want) in enumerate(zip(draw.choice.tolist(), wanted.tolist(), strict=True)):
        if want:
            rows.setdefault(SUB_POLICIES[choice][position], []).append(row)
    return {name: torch.tensor(index) for name, index in rows.items()}


def _per_sample(value: Tensor, feat: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1), which broadcasts over (N, C, H, W)."""
    return value.to(feat)[:, None, None, None]


class _Steered(torch.autograd.Function):
    """A feature as it is, whose gradient also reaches a soft weight: a straight-through estimator's second half.

    With the weight (B,) the feature would go from ``away`` to ``toward``, constants of its shape; without them it would
    rise by one everywhere. B is 1 or N.
    """

    @staticmethod
    def forward(ctx: Any, feat: Tensor, soft: Tensor, toward: Tensor | None, away: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(x.detach() for x in (toward, away) if x is not None))
        ctx.rows = len(soft)
        return feat.view_as(feat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        share = gradient
        if ctx.saved_tensors:
            toward, away = ctx.saved_tensors
            share = (toward - away).mul_(gradient)
        soft = share.sum().reshape(1) if ctx.rows == 1 else share.sum((1, 2, 3))
        return gradient, soft, None, None


def _join(choice: Tensor, gates: Tensor) -> Tensor:
    """Scores (B, 36) and (B, 36, 2) as one vector a row (B, 108)."""
    return torch.cat([choice, gates.flatten(1)], 1)


def _to_host(gradient: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    """Detached copies on the host; from a device without waiting, with the event after which they are there."""
    gradient = {name: value.detach() for name, value in gradient.items()}
    if not next(iter(gradient.values())).is_cuda:
        return gradient, None
    host = {name: torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for name, v in gradient.items()}
    for name, value in gradient.items():
        host[name].copy_(value, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
