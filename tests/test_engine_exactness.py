"""The prepared network's results, against the model's."""

import copy
import statistics

import pytest
import torch
from engine_models import make_model, random_batch, relative_error

import fastinst
from fastinst import ops
from fastinst.engine import prepare


@torch.inference_mode()
@pytest.mark.parametrize("name", fastinst.list_models())
def test_in_float64_it_is_the_model(name):
    model = make_model(name).double()
    network = prepare(model, dtype=torch.float64)
    batch = random_batch(model, (64, 90), (50, 96))
    expected, found = model(batch), network(batch)
    assert found.keys() == expected.keys()
    for key in found:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-10)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "size"), [("fastinst-d1-r18-192", (192, 192)), ("fastinst-d3-r50-640", (192, 256))]
)
def test_in_float32_it_errs_no_more_than_the_model(name, size, monkeypatch):
    """Against float64, by the median over images, with the model's own widths: in narrower ones and
    at smaller sizes PyTorch takes other products. All attend where float64 says: a bit of a mask
    that flips, where its logit is about 0, moves the results more than all rounding.
    """
    model = make_model(name, hidden_dim=256, num_heads=8, ffn_dim=1024)
    exact, network = copy.deepcopy(model).double(), prepare(model)
    errors = {"plain": [], "engine": []}
    for _ in range(7):
        batch = random_batch(exact, size)
        masks = []
        with monkeypatch.context() as patch:
            patch.setattr(ops, "attention_mask", recording(ops.attention_mask, masks))
            expected = exact(batch)
        for kind, run in (("plain", model), ("engine", network)):
            with monkeypatch.context() as patch:
                replayed = iter(masks)
                patch.setattr(ops, "attention_mask", lambda *_, of=replayed: next(of))
                found = run(batch.float())
            assert torch.equal(found["query_indices"], expected["query_indices"])
            errors[kind].append(
                max(relative_error(found[k], expected[k]) for k in ("pred_logits", "pred_masks"))
            )
    plain, engine = (statistics.median(errors[kind]) for kind in ("plain", "engine"))
    assert engine <= plain


def recording(function, results):
    """`function`, what it returns being appended to `results`."""

    def call(*arguments):
        results.append(function(*arguments))
        return results[-1]

    return call


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_err_like_the_model_in_16_bits(dtype):
    """In the features before queries are chosen, which rounding may change."""
    model = make_model("fastinst-d1-r50d-dcn-576")
    network = prepare(model, dtype=dtype)
    batch = random_batch(model, (64, 96))
    expected = dict(model.stages(batch))["pixel decoder"].double()
    found = dict(network.stages(batch.to(dtype)))
    plain = dict(model.to(dtype).stages(batch.to(dtype)))["pixel decoder"]
    error = relative_error(found["pixel decoder"], expected)
    assert error < 1.2 * relative_error(plain, expected) and error < 10 * torch.finfo(dtype).eps
    assert found["pixel decoder"].dtype == found["decoder"]["pred_masks"].dtype == dtype
    assert all(value.isfinite().all() for value in found["decoder"].values())
