"""However a batch is split over processes and parts, its losses and gradients are the same."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastinst.model import create_model
from fastinst.ops import pack_bits
from fastinst.training.gradients import BatchGradients
from fastinst.training.initial_model import initial_model
from fastinst.training.processes import Processes
from fastinst.training.sync_batch_norm import synchronise_batch_norms

SIZES = [(40, 64), (64, 33), (20, 50), (64, 64)]  # of unlike padded sizes, alone
COUNTS = [3, 0, 1, 2]
ALONE = Processes()


def make_model(frozen):
    torch.manual_seed(0)
    options = {"num_points": 32, "hidden_dim": 64, "ffn_dim": 32, "num_queries": 10}
    model = create_model("fastinst-d1-r18-192", 3, frozen_batch_norm=frozen, **options)
    return model.double().train()


def make_samples():
    generator = torch.Generator().manual_seed(1)
    samples = []
    for seed, ((height, width), count) in enumerate(zip(SIZES, COUNTS, strict=True)):
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        masks = pack_bits(torch.rand(count, height, width, generator=generator) < 0.4)
        labels = torch.randint(0, 3, (count,), generator=generator)
        target = {"labels": labels, "masks": masks, "seed": seed}
        samples.append({"image": image, "target": target})
    return samples


def compute(model, samples, processes=ALONE, parts=1):
    """Losses averaged over the processes, gradients, and what batch norms have learnt."""
    losses = BatchGradients(model, processes, parts).compute(samples)
    means = processes.mean(torch.stack([*losses.values()]))
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return dict(zip(losses, means.tolist(), strict=True)), gradients, dict(model.named_buffers())


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    for name, gradient in expected[1].items():
        size = gradient.abs().max().item()
        torch.testing.assert_close(
            found[1][name], gradient, rtol=1e-6, atol=1e-9 * size, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, buffer in expected[2].items():
        torch.testing.assert_close(found[2][name], buffer, rtol=1e-9, atol=1e-12)


def test_parts_add_up_to_the_batch():
    whole = compute(make_model(frozen=True), make_samples())
    for parts in (2, 3, 4, 7):
        assert_same(compute(make_model(frozen=True), make_samples(), parts=parts), whole)


def _on_one_rank(rank, folder, frozen):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = make_model(frozen)
    synchronise_batch_norms(model)
    share = make_samples()[2 * rank : 2 * rank + 2]
    parts = 2 if frozen else 1
    found = compute(model, share, Processes(rank, 2, dist.group.WORLD), parts)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a normal end: pytorch/pytorch#179291


@pytest.mark.parametrize("frozen", [True, False])
def test_two_processes_are_one(tmp_path, frozen):
    """With frozen norms in two parts each; trained norms share their statistics."""
    whole = compute(make_model(frozen), make_samples())
    mp.spawn(_on_one_rank, (tmp_path, frozen), nprocs=2)
    for rank in (0, 1):
        assert_same(torch.load(tmp_path / f"{rank}.pt"), whole)


def test_batch_norms_are_chosen_by_the_batch_and_said(tmp_path):
    from fastinst.weights import save_checkpoint

    weights = tmp_path / "weights.pt"
    options = {"hidden_dim": 64, "ffn_dim": 32}
    save_checkpoint(weights, create_model("fastinst-d1-r18-192", 3, **options), None, None)

    def frozen(images, weights=None, batch_norm="auto"):
        model = initial_model(
            *("fastinst-d1-r18-192", 3, options),
            size=64,
            weights=weights,
            batch_norm=batch_norm,
            images_per_norm=images,
            say=said.append,
        )
        assert model.config.train_short_edge == model.config.test_short_edge == 64
        return model.config.frozen_batch_norm

    said = []
    assert not frozen(2) and "noisy" in said[-1] and "trained on 2 images" in said[-2]
    assert not frozen(4) and "trained on 4 images" in said[-1]
    assert frozen(16, weights) and "frozen" in said[-1]
    assert not frozen(32, weights) and "trained on 32 images" in said[-1]
    assert not frozen(2, weights, "train") and frozen(64, weights, "frozen")
    with pytest.raises(ValueError, match="meaningless without pretrained"):
        frozen(16, None, "frozen")
