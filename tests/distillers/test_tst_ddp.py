"""TST in two processes under the stock MMDistributedDataParallel: one augmenter, apart in data and draws."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch.utils.data import DataLoader

from mmsokd.hooks import TSTHook
from tests.builders import distiller, raw_batch
from tests.two_ranks import assert_same, on_two_ranks

COUNT = 7  # of which one rank gets a picture that the other has too


def pictures():
    batch = raw_batch(COUNT, seed=5)
    return [dict(inputs=x, data_samples=s) for x, s in zip(batch['inputs'], batch['data_samples'], strict=True)]


def worker(rank, folder):
    torch.manual_seed(0)
    plug_ins = dict(
        refine=dict(type='mmsokd.FeatureAugmentationNeck'), areas=dict(type='mmsokd.DistinctiveAreaDetector')
    )
    model = distiller('TSTDistiller', **plug_ins).train()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optim_wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
    optim_wrapper.optim_context = lambda _: nullcontext()
    runner = SimpleNamespace(
        model=wrapped,
        optim_wrapper=optim_wrapper,
        iter=0,
        max_iters=4,
        max_epochs=2,
        seed=3 + rank,  # as MMEngine's diff_rank_seed gives
        log_dir=folder,
        logger=logging.getLogger('tst'),
        train_dataloader=DataLoader(pictures(), batch_size=2, collate_fn=pseudo_collate),
    )
    torch.manual_seed(rank)
    seen, gradients, preprocess = [], [], model.data_preprocessor.forward
    model.data_preprocessor.forward = lambda data, training: (
        seen.extend(s.img_id for s in data['data_samples']) or preprocess(data, training)
    )
    search = model.search_losses

    def look(inputs, samples, chi):
        losses = search(inputs, samples, chi)
        found = torch.autograd.grad(sum(losses.values()), list(chi.values()), retain_graph=True)
        gradients.append(torch.cat(found))
        return losses

    model.search_losses = look
    hook = TSTHook(iters=[0], lr=0.5, max_batches=1)
    hook.before_run(runner)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    chi = torch.cat(list(model.augmenter.tensors().values()))
    (gradient,) = gradients
    dist.all_reduce(gradient)
    torch.testing.assert_close(chi, -0.5 * gradient / 2)  # one step of SGD along the mean
    assert chi.any()
    hook = TSTHook(iters=[1], lr=0.5, passes=2)
    hook.before_train(runner)
    for i in range(3):
        runner.iter = i
        seen.clear()
        hook.before_train_iter(runner, i)
        if i == 1:
            (folder / f'seen_{rank}').write_text(' '.join(map(str, seen)))
        wrapped.train_step(raw_batch(seed=10 * rank + i), optim_wrapper)
    assert_same(torch.cat([p.detach().flatten() for p in (*model.parameters(), *model.augmenter.tensors().values())]))
    (folder / f'draw_{rank}').write_text('; '.join(str(model.augmenter.sample(2)) for _ in range(3)))


@pytest.mark.slow
def test_ranks_stay_together_and_search_apart(tmp_path):
    on_two_ranks(worker, tmp_path)
    seen = [(tmp_path / f'seen_{rank}').read_text().split() for rank in range(2)]
    for one_pass in (slice(4), slice(4, 8)):
        parts = [ids[one_pass] for ids in seen]
        assert [len(set(ids)) for ids in parts] == [4, 4]
        assert len(set(parts[0]) | set(parts[1])) == COUNT
    assert (tmp_path / 'draw_0').read_text() != (tmp_path / 'draw_1').read_text()
