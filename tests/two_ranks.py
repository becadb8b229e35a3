"""Two processes of one machine that train together (gloo)."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from tests.builders import raw_cls_batch


def on_two_ranks(worker: Callable, folder: Path, *args) -> None:
    """Runs ``worker(rank, folder, *args)`` on both, which leave their results in ``folder``; an error is raised."""
    mp.start_processes(_rank, (worker, folder, *args), nprocs=2, start_method='forkserver')
    assert {path.name for path in folder.glob('ended_*')} == {'ended_0', 'ended_1'}


def _rank(rank: int, worker: Callable, folder: Path, *args) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    worker(rank, folder, *args)
    (folder / f'ended_{rank}').touch()
    leave_rank()


def leave_rank() -> None:
    """End a rank's process.

    Not by ``destroy_process_group``: PyTorch 2.1 then joins gloo's thread with the GIL held, which that thread may need
    to free its last tensor, and both wait forever.
    """
    time.sleep(1)  # the others may still be reading what this one has sent
    os._exit(0)


def assert_terms_learn_as_one(build: Callable, rank: int) -> None:
    """The learned parts of a classifier's term stay one on both ranks, at work and at rest.

    ``build(loss_weight=...)`` gives the distiller. At work all of its terms' parameters move, at rest none does.
    """
    for weight in (1.0, [(0.0, 0.0), (0.5, 1.0)]):
        model = build(loss_weight=weight)
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
        before = [p.detach().clone() for p in model.terms.parameters()]
        for i in range(2):  # in the second step DDP misses a parameter that the first has not used
            wrapped.train_step(raw_cls_batch(4, seed=10 * rank + i), wrapper)
        assert_same(torch.cat([p.detach().flatten() for p in model.parameters()]), weight)
        moved = [not torch.equal(*pair) for pair in zip(before, model.terms.parameters(), strict=True)]
        assert moved == [weight == 1.0] * len(before)


def assert_same(tensor: torch.Tensor, *why) -> None:
    """Both ranks hold the same bits."""
    first = tensor.clone()
    dist.broadcast(first, 0)
    assert torch.equal(tensor, first), why
