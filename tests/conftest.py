"""Seeds, the clock, and one thread: the models are too small for two."""

import functools
import gc
import multiprocessing

import pytest
import torch
from hypothesis import settings
from mmengine.config import utils
from mmengine.logging import MessageHub
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

settings.register_profile('quick', deadline=None, print_blob=True, max_examples=25, derandomize=True)
settings.load_profile('quick')

# What a process of its own would spend its first ten seconds on: tests fork theirs from one that has done it.
_apis = ['mmdet.apis', 'mmseg.apis', 'mmpretrain.apis', 'mmsokd']
_late = ['matplotlib.pyplot', 'torchvision', 'mmcv.ops', 'mmpretrain.datasets']  # what a Runner imports on its way
_tests = ['builders', 'builders_checkpoint', 'builders_training', 'killing']
multiprocessing.set_forkserver_preload([*_apis, *_late, *(f'tests.{name}' for name in _tests)])

utils.load = functools.cache(utils.load)  # MMEngine reads all metafiles of a library anew for each `library::` config


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    for key in ('iter', 'max_iters', 'epoch', 'max_epochs'):  # what an earlier test's Runner left
        MessageHub.get_current_instance().update_info(key, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    # Found in a cycle, as a Runner is, a loader can no longer tell its workers to end, and waits 5 seconds for each.
    if multiprocessing.active_children():
        for found in gc.get_objects():
            if type(found) is _MultiProcessingDataLoaderIter:
                found._shutdown_workers()


def pytest_runtest_setup(item):
    if item.get_closest_marker('cuda') is not None and not torch.cuda.is_available():
        pytest.skip('needs a GPU')
