"""All five models compute what the authors' release does, in float64 (see data/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixture_weights import fixture_weight

import fastinst
from fastinst.official import load_official, official_names
from fastinst.ops import activation_rank

DATA = Path(__file__).parent / "data"
MODELS = (
    "fastinst-d1-r50-576",
    "fastinst-d3-r50-640",
    "fastinst-d3-r101-640",
    "fastinst-d1-r50d-dcn-576",
    "fastinst-d3-r50d-dcn-640",
)


class Case:
    """One model with the fixture's weights, and its fixture."""

    def __init__(self, name: str):
        self.facts = json.loads((DATA / f"{name}.json").read_text())
        self.arrays = dict(np.load(DATA / f"{name}.npz"))
        self.state_dict = {
            official: self.arrays[f"override.{official}"]
            if f"override.{official}" in self.arrays
            else fixture_weight(official, shape, self.facts["seed"])
            for official, shape in self.facts["state_dict"].items()
        }
        self.model = fastinst.create_model(name, num_classes=self.facts["num_classes"]).double()
        load_official(self.model, self.state_dict)
        images = [torch.as_tensor(self.arrays[f"image{i}"]) for i in range(2)]
        self.batch, self.sizes = self.model.preprocess(images)

    @torch.no_grad()
    def outputs(self) -> dict[str, torch.Tensor]:
        return self.model.eval()(self.batch)

    def targets(self) -> list[dict[str, torch.Tensor]]:
        targets = []
        for i, (height, width) in enumerate(self.sizes):
            bits = np.unpackbits(self.arrays[f"target{i}.masks"], axis=1, count=height * width)
            masks = torch.as_tensor(bits.reshape(-1, height, width).astype(bool))
            labels = torch.as_tensor(self.arrays[f"target{i}.labels"])
            targets.append({"labels": labels, "masks": masks})
        return targets

    def check(self, actual: torch.Tensor, name: str):
        """Within 1e-6 of the array's largest magnitude."""
        expected = torch.as_tensor(self.arrays[name]).double()
        assert actual.shape == expected.shape
        error = (actual - expected).abs().max() / expected.abs().max()
        assert error <= 1e-6, f"{name}: {error}"


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return Case(request.param)


def test_trainable_parameters(case):
    trainable = [p.numel() for p in case.model.parameters() if p.requires_grad]
    assert sum(trainable) == case.facts["parameters"]


def test_names_are_those_of_the_release(case):
    buffers = {name for name in case.state_dict if name.endswith("criterion.empty_weight")}
    names = official_names(case.model)
    assert len(set(names.values())) == len(names)
    assert set(names.values()) == set(case.state_dict) - buffers
    assert set(names) == set(case.model.state_dict())


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
    case.model.train().zero_grad()
    losses = case.model.loss(
        case.batch, case.targets(), points=torch.as_tensor(case.arrays["points"])
    )
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        case.facts["losses"], rel=1e-8, abs=0
    )
    sum(losses.values()).backward()
    names = official_names(case.model)
    norms = {names[n]: p.grad.norm().item() for n, p in case.model.named_parameters()}
    assert norms == pytest.approx(case.facts["grad_norms"], rel=1e-8, abs=0)
