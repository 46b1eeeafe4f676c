"""Batch norm with the statistics of the whole global batch, on CPUs as well as on GPUs."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all processes' batches together.

    `nn.SyncBatchNorm` does not train on CPUs, where equality with one process can be tested.
    Names and shapes of parameters and buffers are nn.BatchNorm2d's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            # Of equal weight per pixel, for the processes' batches may differ in size.
            count = exact.new_full((1,), exact.numel() / exact.shape[1])
            total = all_reduce(torch.cat([exact.sum((0, 2, 3)), count]))
            mean, count = total[:-1] / total[-1], total[-1].detach()
            centred = exact - mean[:, None, None]
            variance = all_reduce(centred.square().sum((0, 2, 3))) / count
            with torch.no_grad():
                unbiased = variance * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked.add_(1)
            scale = self.weight * torch.rsqrt(variance + self.eps)
            out = centred * scale[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)


def synchronise_batch_norms(module: nn.Module) -> None:
    """Let every trainable batch norm of `module` share statistics with the other processes."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for child in module.modules():
            if type(child) is nn.BatchNorm2d:
                child.__class__ = SyncBatchNorm2d
