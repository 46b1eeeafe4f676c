"""The moving average of the weights against its definition, weight by weight."""

import io

import pytest
import torch
from torch import nn

from fastinst.training.ema import ExponentialMovingAverage


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 4)).train()


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model[1].running_mean.normal_()
        model[1].num_batches_tracked += 1


def test_against_the_definition():
    model = network()
    average = ExponentialMovingAverage(model, decay=0.4)
    expected = {name: value.double() for name, value in model.named_parameters()}
    decays = []
    for n in range(1, 13):
        change(model)
        average.update(model)
        decays.append(min(0.4, (1 + n) / (10 + n)))
        for name, value in model.named_parameters():
            expected[name] = decays[-1] * expected[name] + (1 - decays[-1]) * value.double()
    assert decays[0] == 2 / 11 and decays[4] == pytest.approx(0.4) and decays[-1] == 0.4
    for name, value in average.model.named_parameters():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not value.requires_grad
    for name, value in average.model.named_buffers():
        assert torch.equal(value, model.get_buffer(name))
    assert not average.model.training and model.training


def test_it_has_weights_of_its_own():
    model = network()
    average = ExponentialMovingAverage(model, decay=0.9)
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    change(model)
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_restored_average_goes_on_bit_for_bit():
    model, file = network(), io.BytesIO()
    average = ExponentialMovingAverage(model, decay=0.999)
    for _ in range(3):
        change(model)
        average.update(model)
    torch.save(average.state_dict(), file)
    file.seek(0)
    other = ExponentialMovingAverage(network(), decay=0.999)
    other.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        change(model)
        average.update(model)
        other.update(model)
    assert other.updates == average.updates == 6
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_a_model_without_buffers():
    model = nn.Linear(2, 2)
    ExponentialMovingAverage(model, decay=0.5).update(model)


def test_an_update_launches_few_operations():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(50)))
    average = ExponentialMovingAverage(model, decay=0.5)
    with torch.profiler.profile() as profile:
        average.update(model)
    assert any("_foreach_lerp_" in event.key for event in profile.key_averages())
    assert not any(
        event.key in ("aten::item", "aten::_local_scalar_dense") for event in profile.key_averages()
    )
