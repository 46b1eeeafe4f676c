"""The batched, packed, fused losses are those of one image and output after the other."""

import json
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_model import random_images, random_targets, small_model

from fastinst.criterion import count_totals
from fastinst.ops import pack_bits
from fastinst.rivals.straight_loss import straight_loss


def with_seeds(targets):
    return [target | {"seed": 2**63 - 5 - 10**18 * i} for i, target in enumerate(targets)]


def blobs(sizes, counts, classes=3):
    """Random ellipses, so that masks are neither noise nor all alike."""
    targets = random_targets(sizes, counts, classes)
    for target, (height, width) in zip(targets, sizes, strict=True):
        row, column = torch.arange(height)[:, None], torch.arange(width)
        for mask in target["masks"]:
            y, x, b, a = (
                torch.rand(4) * torch.tensor([height, width, height / 2, width / 2])
            ).tolist()
            mask.copy_(((row - y) / (b + 1)) ** 2 + ((column - x) / (a + 1)) ** 2 < 1)
    return targets


@pytest.mark.parametrize("given", [True, False], ids=["given points", "seeds"])
@pytest.mark.parametrize(
    ("layers", "counts"),
    [(1, (2, 5)), (3, (0, 3)), (2, (30, 7)), (1, (0, 0))],
    ids=["some", "an image without", "more than queries", "none"],
)
def test_losses_and_gradients_are_the_straight_ones(layers, counts, given):
    model = small_model(num_layers=layers, num_points=100).double()
    batch, sizes = model.preprocess(random_images((64, 80), (50, 96)))
    targets = with_seeds(blobs(sizes, counts))
    points = torch.rand(1, 100, 2) if given else None

    expected = straight_loss(model, batch, targets, points)
    sum(expected.values()).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name], parameter.grad = parameter.grad, None

    losses = model.loss(batch, targets, points)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-10, atol=1e-12)
    sum(losses.values()).backward()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-9, atol=1e-10 * largest, msg=name
        )


def test_packed_masks_are_as_good_as_bool_ones():
    model = small_model(num_points=100).double()
    batch, sizes = model.preprocess(random_images((64, 80), (50, 96)))
    targets = with_seeds(blobs(sizes, (2, 5)))
    packed = [target | {"masks": pack_bits(target["masks"])} for target in targets]
    expected = model.loss(batch, targets)
    assert expected == model.loss(batch, packed)


def test_the_parts_of_a_batch_add_up_to_it():
    """Random points as well: they follow from the images' seeds."""
    model = small_model(num_points=50).double().eval()
    batch, sizes = model.preprocess(random_images((64, 80), (50, 96), (60, 70)))
    targets = with_seeds(blobs(sizes, (2, 0, 5)))
    whole = model.loss(batch, targets)
    totals = count_totals(targets, batch.shape[2:], model.config)
    parts = [model.loss(batch[p], targets[p], totals=totals) for p in (slice(2), slice(2, 3))]
    for name, loss in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], loss)
    with_objects = sum(loss.item() > 0 for loss in parts[1].values())
    assert with_objects == len(whole)


def _losses_on_one_rank(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model, batch, targets = torch.load(folder / "case", weights_only=False)
    share = (slice(1), slice(1, 3))[rank]
    losses = model.loss(batch[share], targets[share])
    (folder / str(rank)).write_text(json.dumps({k: v.item() for k, v in losses.items()}))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a normal end: pytorch/pytorch#179291


def test_the_mean_over_processes_is_the_loss_of_all_their_images(tmp_path):
    model = small_model(num_points=50).double().eval()
    batch, sizes = model.preprocess(random_images((64, 80), (50, 96), (60, 70)))
    targets = with_seeds(blobs(sizes, (1, 0, 4)))
    torch.save((model, batch, targets), tmp_path / "case")
    mp.spawn(_losses_on_one_rank, (tmp_path,), nprocs=2)
    parts = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    for name, loss in model.loss(batch, targets).items():
        assert (parts[0][name] + parts[1][name]) / 2 == pytest.approx(loss.item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_under_autocast(dtype):
    """Near the float32 ones: what is summed over points must be in float32."""
    model = small_model(num_points=100, num_layers=2).eval()
    batch, sizes = model.preprocess(random_images((64, 80), (50, 96)))
    targets = with_seeds(blobs(sizes, (2, 5)))
    expected = model.loss(batch, targets)
    with torch.autocast("cpu", dtype):
        losses = model.loss(batch, targets)
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    total = sum(expected.values()).item()
    assert sum(losses.values()).item() == pytest.approx(total, rel=0.05)
