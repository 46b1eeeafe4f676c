"""The baseline, Mask2Former with FastInst's pixel decoder, and what lies between the two."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from parity_case import Case

import fastinst
from fastinst import ops
from fastinst.config import make_config
from fastinst.errors import InputError
from fastinst.model import FastInst
from fastinst.positions import SinePositions

BASELINE = "mask2former-light-r50-640"
D3 = "fastinst-d3-r50-640"


@pytest.fixture(scope="module")
def case():
    return Case("mask2former-light-r50", BASELINE)


def test_parameters(case):
    case.check_parameters()


def test_predictions(case):
    outputs = case.outputs()
    assert set(outputs) == {"pred_logits", "pred_masks"}
    case.check(outputs["pred_logits"], "pred_logits")
    case.check(outputs["pred_masks"], "pred_masks")


@torch.no_grad()
def test_every_earlier_prediction(case):
    scene, queries = case.model.encode(case.batch)
    trace = case.model.decoder.trace(scene, queries)
    for i, (output, masks) in enumerate(zip(trace.outputs[:-1], trace.masks[:-1], strict=True)):
        case.check(output.logits, f"aux{i}.pred_logits")
        # Stored in float16.
        case.check(masks.unflatten(2, scene.size), f"aux{i}.pred_masks", tolerance=1e-3)


def test_losses_and_gradients(case):
    case.check_losses_and_gradients()


def test_sines_are_those_of_the_definition():
    """Rows first, sine and cosine in turn, over 2 pi: in plain loops."""
    positions = SinePositions(64).double()((3, 5))[0]
    for row, column, i in itertools.product(range(3), range(5), range(16)):
        for half, (place, length) in enumerate([(row, 3), (column, 5)]):
            angle = (place + 1) / (length + 1e-6) * 2 * math.pi / 10000 ** (2 * i / 32)
            wave = positions[32 * half + 2 * i :, row, column][:2]
            assert wave.tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-12)


# Table I of the supplement: its switches, and millions of parameters. The paper has 33.5 where a
# learnt query has no parameters.
TABLE = {
    "": 40.9,
    "B": 41.4,
    "C": 40.9,
    "BC": 41.4,
    "A": 33.6,
    "AB": 34.1,
    "AC": 33.6,
    "ABC": 34.1,
    "ABCE": 34.2,
}


def switched(letters: str, **overrides) -> dict:
    """Overrides of the two presets' common fields by the table's letters."""
    return {
        "dual_path": "A" in letters,
        "activation_guided": "B" in letters,
        "mask_guided": "C" in letters,
        "learnable_positions": "E" in letters,
        "num_aux_queries": 8 if "E" in letters else 0,
        **({"num_layers": 3, "ffn_dim": 1024} if "A" in letters else {}),
        **overrides,
    }


@pytest.mark.parametrize("letters", TABLE)
def test_parameters_of_every_column(letters):
    with torch.device("meta"):
        model = FastInst(make_config(BASELINE, **switched(letters)))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions, 1) == TABLE[letters]


def test_the_ends_of_the_table_are_the_presets():
    fields = {name: getattr(make_config(D3), name) for name in switched("ABCE")}
    assert fields == {name: value for name, value in switched("ABCE").items()}
    fields = {name: getattr(make_config(BASELINE), name) for name in switched("")}
    assert fields == switched("")


SMALL = {
    "backbone": "resnet18",
    "frozen_batch_norm": False,
    "hidden_dim": 64,
    "num_heads": 2,
    "num_queries": 10,
    "num_points": 64,
}


def small(letters: str, **overrides) -> FastInst:
    torch.manual_seed(0)
    sizes = {"num_layers": 2 if "A" in letters else 4, "ffn_dim": 32}
    return fastinst.create_model(BASELINE, 3, **switched(letters, **SMALL, **sizes) | overrides)


def batch_and_targets(model: FastInst):
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((96, 128), (70, 90))]
    batch, sizes = model.preprocess(images)
    targets = []
    for count, (height, width) in zip((3, 0), sizes, strict=True):
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for i in range(count):
            masks[i, 10 * i : 40 + 10 * i, 20 * i : 50 + 20 * i] = True
        targets.append({"labels": torch.arange(count), "masks": masks})
    return batch, targets


@pytest.mark.parametrize("letters", [*TABLE, "E", "BE", "CE", "BCE", "AE", "ABE", "ACE"])
def test_every_column_trains_a_step_and_predicts(letters):
    aux = {} if "B" in letters else {"num_aux_queries": 0}
    model = small(letters, **aux)
    batch, targets = batch_and_targets(model)
    losses = model.train().loss(batch, targets)
    layers = model.config.num_layers
    outputs = layers + 1 + (layers if "C" in letters else 0)
    assert len(losses) == 3 * outputs + ("B" in letters)
    assert ("loss_proposal" in losses) == ("B" in letters)
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    results = fastinst.Predictor(model.eval(), "cpu", "float32")([torch.zeros(3, 80, 100).byte()])
    assert len(results[0]) == 30 and results[0].masks.shape == (30, 80, 100)


@pytest.mark.parametrize("letters", ["", "C", "BC", "AC", "BCE"])
def test_the_prepared_network_equals_the_model(letters):
    aux = {} if "B" in letters else {"num_aux_queries": 0}
    model = small(letters, **aux).double().eval()
    batch, _ = batch_and_targets(model)
    network = fastinst.Predictor(model, "cpu", "float64").network
    with torch.inference_mode():
        for shape in (batch.shape[2:], (64, 96), (32, 32), batch.shape[2:]):
            part = batch[:, :, : shape[0], : shape[1]]
            for name, expected in model(part).items():
                torch.testing.assert_close(network(part)[name], expected, rtol=0, atol=1e-9)


def test_ground_truth_guides_each_level_at_its_own_size(monkeypatch):
    model = small("C")
    batch, targets = batch_and_targets(model)
    given = []
    plain = model.decoder.guided

    def guided(trace, scene, queries, attend):
        given.extend(zip(scene.levels, attend, strict=True))
        return plain(trace, scene, queries, attend)

    monkeypatch.setattr(model.decoder, "guided", guided)
    model.loss(batch, targets)
    assert [level.size for level, _ in given] == [(3, 4), (6, 8), (12, 16)]
    masks = targets[0]["masks"]
    for level, attend in given:
        shown = F.interpolate(masks[None].float(), level.size, mode="nearest")[0].flatten(1) > 0
        rows = ops.unpack_bits(attend, math.prod(level.size))
        everywhere = torch.ones_like(shown[0])
        assert (rows[1] == everywhere).all()
        guides = [row for row in rows[0] if not torch.equal(row, everywhere)]
        assert sorted(row.tolist() for row in guides) == sorted(row.tolist() for row in shown)


def test_learnt_queries_have_no_auxiliary_ones():
    with pytest.raises(InputError, match="num_aux_queries must be 0 where queries are learnt"):
        make_config(D3, activation_guided=False)
