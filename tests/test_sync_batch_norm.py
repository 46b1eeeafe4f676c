"""Batch norm over two processes against PyTorch's over the whole batch in one."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from fastinst.training.sync_batch_norm import SyncBatchNorm2d, synchronise_batch_norms


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).double()


def make_batch():
    return torch.randn(5, 3, 6, 7, generator=torch.Generator().manual_seed(1)).double()


def train_step(network, batch):
    """A loss that is a sum over images, and then its gradients, statistics and an evaluation."""
    network(batch).square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return gradients, list(network.buffers()), network.eval()(make_batch()).detach()


def _on_one_rank(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    network = make_network()
    synchronise_batch_norms(network)
    assert isinstance(network[1], SyncBatchNorm2d)
    share = (make_batch()[:2], make_batch()[2:])[rank]  # of unlike sizes
    gradients, buffers, output = train_step(network, share)
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save((gradients, buffers, output), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a normal end: pytorch/pytorch#179291


def test_two_processes_are_one(tmp_path):
    expected = train_step(make_network(), make_batch())
    mp.spawn(_on_one_rank, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_one_process_keeps_pytorch_s():
    network = make_network()
    synchronise_batch_norms(network)
    assert type(network[1]) is nn.BatchNorm2d
