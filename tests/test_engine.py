"""The prepared network as an object: what it keeps, shares, refuses, and does without."""

import gc
import threading
import weakref

import pytest
import torch
from engine_models import make_model, random_batch

from fastinst.engine import convolution, linear, prepare
from fastinst.engine.positions import KEPT_SIZES


def test_the_model_stays_as_it_is():
    model = make_model().train()
    model.backbone.conv1.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    network = prepare(model, dtype=torch.bfloat16)
    with torch.inference_mode():
        network(random_batch(network, (64, 96)))
    assert model.training and not network.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
    assert list(model.state_dict()) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    targets = [{"labels": torch.tensor([1]), "masks": torch.ones(1, 64, 96, dtype=torch.bool)}]
    sum(model.loss(random_batch(model, (64, 96)), targets).values()).backward()


def test_preparing_runs_no_module():
    """Whoever has a hook on the model would be told of passes that are none."""
    model, calls = make_model(), []
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    prepare(model)
    assert not calls


@torch.inference_mode()
def test_trained_norms_are_folded_with_their_running_statistics():
    model = make_model(frozen_batch_norm=False).double()
    batch = random_batch(model, (64, 96))
    expected = model(batch)["pred_masks"]
    network = prepare(model.train(), dtype=torch.float64)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(network(batch)["pred_masks"], expected, rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_sizes_come_and_go():
    """More of them than positions are kept for, transposed ones, and the first again."""
    model = make_model(num_layers=2).double()
    network = prepare(model, dtype=torch.float64)
    sizes = [(64, 96), (96, 64), (32, 32), (96, 32), (32, 96), (64, 64), (64, 96), (32, 192)]
    for size in sizes:
        for batch_size in (1, 2):
            batch = random_batch(model, *[size] * batch_size)
            expected = model(batch)["pred_masks"]
            for _ in range(2):
                found = network(batch)["pred_masks"]
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_positions_are_kept_for_some_sizes_and_for_whoever_holds_them():
    network = prepare(make_model())
    attention = network.model.decoder.layers[0].pixel_attention

    def term_of(height: int, width: int) -> weakref.ref:
        network(random_batch(network, (height, width)))
        _, tokens = network.constants(height, width)
        return weakref.ref(attention.x_term(tokens))

    forgotten, held = term_of(64, 96), term_of(96, 64)
    constants = network.constants(96, 64)
    again = term_of(64, 96)
    assert again() is forgotten()
    del again
    for i in range(KEPT_SIZES):
        term_of(32, 32 * (i + 1))
    gc.collect()
    assert forgotten() is None and held() is attention.x_term(constants[1])


def test_threads_may_share_it():
    model = make_model().double()
    network = prepare(model, dtype=torch.float64)
    sizes = [(32, 64), (64, 32), (96, 64), (64, 96), (64, 128), (128, 64), (32, 96)]
    with torch.inference_mode():
        batches = [random_batch(model, size) for size in sizes]
        expected = [model(batch)["pred_masks"] for batch in batches]
    failures = []

    def work(first: int) -> None:
        with torch.inference_mode():
            for turn in range(2 * len(sizes)):
                i = (first + turn) % len(sizes)
                try:
                    torch.testing.assert_close(network(batches[i])["pred_masks"], expected[i])
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@torch.inference_mode()
def test_stages_end_with_what_forward_returns():
    network = prepare(make_model())
    batch = random_batch(network, (64, 96))
    stages = dict(network.stages(batch))
    assert list(stages) == ["backbone", "pixel decoder", "decoder"]
    for key, value in network(batch).items():
        assert torch.equal(stages["decoder"][key], value)


@torch.inference_mode()
def test_a_batch_in_another_layout_is_taken():
    network = prepare(make_model())
    batch = random_batch(network, (64, 96))
    for key, value in network(batch.contiguous()).items():
        assert torch.equal(value, network(batch)[key])


def test_it_neither_trains_nor_moves():
    network = prepare(make_model())
    with pytest.raises(RuntimeError, match="for inference alone; train its model"):
        network.train()
    with pytest.raises(RuntimeError, match="prepare its model for the other device"):
        network.to(torch.float16)
    assert not hasattr(network, "loss")
    assert not network.eval().training and not any(p.requires_grad for p in network.parameters())


def break_onednn(monkeypatch):
    def absent(*_):
        raise NotImplementedError("no such operator in this PyTorch")

    for kinds in (convolution.convolution_kind, linear.linear_kind):
        kinds.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", absent)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", absent)


@torch.inference_mode()
def test_without_onednn_it_says_so_and_works(monkeypatch):
    model = make_model()
    batch = random_batch(model, (64, 96))
    expected = model(batch)["pred_masks"]
    fast = prepare(model)
    assert fast.describe().startswith(
        "float32 on cpu; convolutions: oneDNN, prepacked; linear maps: oneDNN, prepacked; operators"
    )
    break_onednn(monkeypatch)
    slow = prepare(model)
    monkeypatch.undo()
    for kinds in (convolution.convolution_kind, linear.linear_kind):
        kinds.cache_clear()
    assert "convolutions: PyTorch; linear maps: PyTorch; operators" in slow.describe()
    for network in (fast, slow):
        torch.testing.assert_close(
            network(batch)["pred_masks"], expected, rtol=1e-3, atol=1e-4 * expected.abs().max()
        )


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch(dtype):
    network = prepare(make_model(), dtype=dtype)
    outputs = network(torch.empty(0, 3, 64, 96, dtype=dtype))
    assert [len(value) for value in outputs.values()] == [0, 0, 0]
