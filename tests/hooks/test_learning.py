"""A real training run: what the plug-ins are meant to learn, they learn."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.builders import raw_batch, retinanet
from tests.hooks.test_training import config, make_pictures


class Keep(Hook):
    """Keeps the logged numbers."""

    priority = 'LOWEST'

    def __init__(self):
        self.rows = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.rows.append({k: float(v) for k, v in outputs.items()})


def mean_objective(model, policy_state, draws=150):
    """L_aug of a policy, averaged over draws, against the student as it stands now."""
    neck = copy.deepcopy(model.refine.necks['shared'])
    neck.policy.set_extra_state(policy_state)
    neck.policy.draws = 10_000  # the same draws' uniforms for both policies
    term = model.terms['loss_hint']
    data = model.data_preprocessor(raw_batch(4, seed=5), False)
    with torch.no_grad():
        teacher = list(model.teacher.extract_feat(data['inputs']))
        student = term.adapt(model.student.extract_feat(data['inputs']), teacher)
        values = [neck.objective(neck(teacher, neck.sample(4)), student) for _ in range(draws)]
    return torch.stack(values).mean()


@pytest.mark.slow
@pytest.mark.parametrize('refine', [dict(), dict(magnitude_grad='pathwise'), dict(estimator='relax')])
def test_search_lowers_the_objective_and_agreement_falls_without_collapse(tmp_path, refine):
    data = make_pictures(tmp_path / 'pictures', count=16)
    hooks = [dict(type='mmsokd.PolicySearchHook', search_epochs=20, lr=0.02, weight_decay=0.0)]
    cfg = config(data, tmp_path / 'run', hooks=hooks, epochs=20, val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg.model.teacher = retinanet(24)
    cfg.model.refine = dict(type='mmsokd.FeatureAugmentationNeck', **refine)
    runner = Runner.from_cfg(cfg)
    keep = Keep()
    runner.register_hook(keep)
    policy = runner.model.refine.necks['shared'].policy
    start = policy.get_extra_state().clone()
    runner.train()
    model = runner.model.eval()

    before, after = mean_objective(model, start), mean_objective(model, policy.get_extra_state())
    assert after < 0.98 * before, f'L_aug {before:.4f} -> {after:.4f}'
    assert 0.5 < sum(row['sokd.norm_ratio'] for row in keep.rows[-20:]) / 20 < 2  # and not by blanking

    # The heads start out flat, so they agree at first and the bare loss rises while they learn to tell places apart.
    # What must fall is the disagreement beside that contrast; a collapse would take the contrast away.
    relative = [row['sokd.loss_agreement'] / row['sokd.heat_std'] ** 2 for row in keep.rows]
    assert sum(relative[-10:]) < 0.5 * max(sum(relative[i : i + 10]) for i in range(0, 40, 10))
    assert keep.rows[-1]['sokd.heat_std'] > 0.05
    assert keep.rows[-1]['sokd.mask_cover'] < 0.9
    hint = [row['distill.loss_hint'] for row in keep.rows]
    assert sum(hint[-10:]) < 0.8 * sum(hint[:10])
