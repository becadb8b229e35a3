"""Two processes under the stock MMDistributedDataParallel, without find_unused_parameters."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank)
    )
    dist.init_process_group('gloo', rank=rank, world_size=2)
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import OptimWrapper

    from mmsokd.hooks.policy_search import _mean_over_ranks
    from tests.builders import distiller, raw_batch

    at = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')
    off = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', loss_weight=[(0.0, 0.0), (0.5, 1.0)]))
    for kwargs in (dict(), dict(keep_host=False), dict(refine=at), dict(terms=off)):
        torch.manual_seed(0)
        model = distiller(**kwargs).train()
        wrapped = MMDistributedDataParallel(model)
        optim_wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
        (neck,) = model.refine.necks.values()
        neck.searching = True
        for i in range(3):
            wrapped.train_step(raw_batch(seed=10 * rank + i), optim_wrapper)
        mine = torch.cat([p.detach().flatten() for p in model.parameters()])
        first = mine.clone()
        dist.broadcast(first, 0)
        assert torch.equal(mine, first), kwargs
    gradient = _mean_over_ranks(dict(alpha=torch.full((3,), float(rank)), beta=torch.full((2, 2), 4.0 * rank)))
    torch.testing.assert_close(gradient, dict(alpha=torch.full((3,), 0.5), beta=torch.full((2, 2), 2.0)))
    (folder / f'{rank}').write_text(str(neck.policy.sample(1)))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_stay_together_and_draw_apart(tmp_path):
    mp.spawn(worker, args=(29500 + os.getpid() % 1000, tmp_path), nprocs=2)
    assert (tmp_path / '0').read_text() != (tmp_path / '1').read_text()
