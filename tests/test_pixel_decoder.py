"""Parts of the pixel decoder."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fastinst.pixel_decoder import average_pool


class OnMps(torch.Tensor):
    """A tensor of the CPU that says it is on Apple's GPU."""

    device = SimpleNamespace(type="mps")


@pytest.mark.parametrize("sides", [(20, 27), (6, 6), (1, 1), (4, 13)])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_pooling_where_sides_are_no_multiples(sides, size, monkeypatch):
    x = torch.randn(2, 5, *sides, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, size)
    assert torch.equal(average_pool(x, size), expected)
    monkeypatch.setattr(F, "adaptive_avg_pool2d", None)
    actual = average_pool(x.as_subclass(OnMps), size).as_subclass(torch.Tensor)
    torch.testing.assert_close(actual, expected)
