"""The prepared network's results, against the model's."""

import copy
import statistics

import pytest
import torch
from engine_models import make_model, random_batch, relative_error

import fastinst
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
@pytest.mark.parametrize("name", ["fastinst-d1-r18-192", "fastinst-d1-r50d-dcn-576"])
def test_in_float32_it_errs_like_the_model(name):
    """Measured against float64. oneDNN adds up long sums in one go, which MKL does in parts, and so
    errs 1.1 to 1.5 times as much. Where a logit is about 0, a bit of an attention mask may flip in
    either, which then errs far more: medians over images are compared.
    """
    model = make_model(name)
    exact, network = copy.deepcopy(model).double(), prepare(model)
    errors = {"plain": [], "engine": []}
    for _ in range(15):
        batch = random_batch(exact, (64, 64))
        expected = exact(batch)
        for kind, run in (("plain", model), ("engine", network)):
            found = run(batch.float())
            assert torch.equal(found["query_indices"], expected["query_indices"])
            errors[kind].append(
                max(relative_error(found[k], expected[k]) for k in ("pred_logits", "pred_masks"))
            )
    plain, engine = (statistics.median(errors[kind]) for kind in ("plain", "engine"))
    assert engine < 2 * plain


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
