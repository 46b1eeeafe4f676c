"""All five models compute what the authors' release does, in float64 (see data/README.md)."""

import numpy as np
import pytest
import torch
from parity_case import Case

import fastinst
from fastinst.ops import activation_rank

MODELS = (
    "fastinst-d1-r50-576",
    "fastinst-d3-r50-640",
    "fastinst-d3-r101-640",
    "fastinst-d1-r50d-dcn-576",
    "fastinst-d3-r50d-dcn-640",
)


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return Case(request.param, request.param)


def test_parameters(case):
    case.check_parameters()


@torch.no_grad()
def test_features_and_proposals(case):
    features = case.model.backbone(case.batch)
    for level, feature in zip((3, 4, 5), features, strict=True):
        case.check(feature[:, :8], f"backbone.res{level}")
    p3, p4, p5 = case.model.pixel_decoder(features)
    for level, feature in zip((3, 4, 5), (p3, p4, p5), strict=True):
        case.check(feature[:, :8], f"pixel_decoder.p{level}")
    queries = case.model.queries(p4, case.model.positions(p4.shape[2:]))
    case.check(activation_rank(queries.class_logits), "proposal.rank")
    assert queries.indices.tolist() == case.arrays["proposal.indices"].tolist()


def test_predictions_and_results(case):
    outputs = case.outputs()
    assert outputs["query_indices"].tolist() == case.arrays["proposal.indices"].tolist()
    case.check(outputs["pred_logits"], "pred_logits")
    case.check(outputs["pred_masks"], "pred_masks")
    output_sizes = [tuple(case.arrays[f"output_size{i}"].tolist()) for i in range(2)]
    results = fastinst.postprocess(outputs, case.sizes, output_sizes)
    for i, result in enumerate(results):
        case.check(result.scores, f"result{i}.scores")
        classes, masks = case.arrays[f"result{i}.classes"], case.arrays[f"result{i}.masks"]
        # Empty masks score exactly 0, come last, and stand in any order.
        filled = int((case.arrays[f"result{i}.scores"] > 0).sum())
        assert ((result.scores > 0).sum(), len(result)) == (filled, 100)
        assert (result.labels[:filled].cpu().numpy() == classes[:filled]).all()
        assert sorted(result.labels[filled:].tolist()) == sorted(classes[filled:].tolist())
        packed = np.packbits(result.masks.flatten(1).cpu().numpy(), axis=1)
        assert (packed == masks).all()


def test_losses_and_gradients(case):
    case.check_losses_and_gradients()
