"""A model beside what the release recorded of it (see data/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixture_weights import fixture_weight

import fastinst
from fastinst.official import load_official, official_names

DATA = Path(__file__).parent / "data"


class Case:
    """One model with the fixture's weights, and its fixture of that name, in float64."""

    def __init__(self, name: str, model: str):
        self.facts = json.loads((DATA / f"{name}.json").read_text())
        self.arrays = dict(np.load(DATA / f"{name}.npz"))
        self.state_dict = {
            official: self.arrays[f"override.{official}"]
            if f"override.{official}" in self.arrays
            else fixture_weight(official, shape, self.facts["seed"])
            for official, shape in self.facts["state_dict"].items()
        }
        classes = self.facts["num_classes"]
        self.model = fastinst.create_model(model, num_classes=classes).double()
        load_official(self.model, self.state_dict)
        images = [torch.as_tensor(v) for k, v in self.arrays.items() if k.startswith("image")]
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

    def check(self, actual: torch.Tensor, name: str, tolerance: float = 1e-6):
        """Within so much of the array's largest magnitude."""
        expected = torch.as_tensor(self.arrays[name]).double()
        assert actual.shape == expected.shape
        error = (actual - expected).abs().max() / expected.abs().max()
        assert error <= tolerance, f"{name}: {error}"

    def check_parameters(self):
        """Their number, and that their names are the release's."""
        trainable = [p.numel() for p in self.model.parameters() if p.requires_grad]
        assert sum(trainable) == self.facts["parameters"]
        buffers = {name for name in self.state_dict if name.endswith("criterion.empty_weight")}
        names = official_names(self.model)
        assert len(set(names.values())) == len(names)
        assert set(names.values()) == set(self.state_dict) - buffers
        assert set(names) == set(self.model.state_dict())

    def check_losses_and_gradients(self):
        self.model.train().zero_grad()
        points = torch.as_tensor(self.arrays["points"])
        losses = self.model.loss(self.batch, self.targets(), points)
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
            self.facts["losses"], rel=1e-8, abs=0
        )
        sum(losses.values()).backward()
        names = official_names(self.model)
        norms = {names[n]: p.grad.norm().item() for n, p in self.model.named_parameters()}
        assert norms == pytest.approx(self.facts["grad_norms"], rel=1e-8, abs=0)
