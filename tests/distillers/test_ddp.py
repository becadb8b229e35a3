"""Two processes under the stock MMDistributedDataParallel, without find_unused_parameters."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from mmsokd.augment import FeatureAugmentationNeck
from mmsokd.hooks import PolicySearchHook
from tests.builders import distiller, raw_batch
from tests.two_ranks import assert_same, on_two_ranks


def worker(rank, folder):
    at = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    off = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=[(0.0, 0.0), (0.5, 1.0)]))
    shared = dict(type='mmsokd.FeatureAugmentationNeck', shared_draws=True)
    learning = dict(loss_host=dict(type='mmsokd.VIDLoss', tap='neck'))  # its variances, unless the areas replace it
    host_rests = dict(terms=learning, keep_host=False)
    for kwargs in (dict(), host_rests, dict(refine=at), dict(refine=shared), dict(terms=off)):
        policy = train(rank, folder, kwargs)
        moved = (policy.magnitude - 0.5).abs().max() > 0
        assert moved == (kwargs.get('terms') is not off), kwargs  # a term at weight 0 searches nothing
    for more in (dict(mode='unrolled'), dict(accumulate=2), dict(mode='unrolled', accumulate=2)):
        policy = train(rank, folder, dict(), **more)
        assert (policy.magnitude - 0.5).abs().max() > 0
    (folder / f'{rank}').write_text(str(policy.sample(1)))
    torch.manual_seed(rank)  # as MMEngine's diff_rank_seed does
    neck = FeatureAugmentationNeck(shared_draws=True)
    (folder / f'shared_{rank}').write_text('; '.join(str(neck.sample(1)) for _ in range(3)))


def train(rank, folder, kwargs, mode='fused', accumulate=1):
    """Four iterations of the student and of the policy on each rank's own batches: both must stay one."""
    torch.manual_seed(0)
    model = distiller(**kwargs).train()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optim_wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01), accumulate)
    runner = SimpleNamespace(model=wrapped, optim_wrapper=optim_wrapper, iter=0, max_iters=100, log_dir=folder)
    hook = PolicySearchHook(mode, lr=0.1, weight_decay=0.0, log_interval=100)
    hook.before_run(runner)
    hook._end = 100
    for i in range(4):
        runner.iter = i
        batch = raw_batch(seed=10 * rank + i)
        hook.before_train_iter(runner, i, batch)
        hook.after_train_iter(runner, i, batch, wrapped.train_step(batch, optim_wrapper))
    policy = model.refine.necks['shared'].policy
    tensors = (*model.parameters(), policy.alpha, policy.beta, policy.magnitude)
    assert_same(torch.cat([tensor.detach().flatten() for tensor in tensors]), kwargs, mode)
    return policy


@pytest.mark.slow
def test_ranks_stay_together_and_draw_apart(tmp_path):
    on_two_ranks(worker, tmp_path)
    assert (tmp_path / '0').read_text() != (tmp_path / '1').read_text()
    assert (tmp_path / 'shared_0').read_text() == (tmp_path / 'shared_1').read_text()
