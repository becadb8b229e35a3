"""Importing this puts a SyncBatchNorm for CPUs in the place of PyTorch's, which runs on GPUs alone."""

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Mean and variance over all ranks' batches of equal size, by definition."""

    def _check_input_dim(self, feat):
        pass

    def forward(self, feat):
        if not self.training:
            return super().forward(feat)
        ranks, count = torch.distributed.get_world_size(), feat.numel() / feat.shape[1]
        mean = all_reduce(feat.mean((0, 2, 3))) / ranks
        var = all_reduce((feat - mean[:, None, None]).square().mean((0, 2, 3))) / ranks
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * ranks * count / (ranks * count - 1), self.momentum)
            self.num_batches_tracked += 1
        scaled = (feat - mean[:, None, None]) * (var + self.eps).rsqrt()[:, None, None]
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


torch.nn.modules.batchnorm.SyncBatchNorm = CPUSyncBatchNorm  # as mmengine.model.convert_sync_batchnorm finds it
