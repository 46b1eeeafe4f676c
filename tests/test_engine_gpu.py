"""The prepared network on a GPU: cuDNN's and cuBLAS's fused kernels, and capture in a graph."""

import pytest
import torch
from engine_models import make_model, random_batch, relative_error

from fastinst.engine import prepare
from fastinst.engine.convolution import CudnnConvolution, convolution
from fastinst.engine.linear import CudaLinear, linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DTYPES = [torch.float32, torch.float16]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def leave_nan_behind(like: torch.Tensor) -> None:
    """In memory that the allocator hands out next, which no kernel may read before it writes."""
    torch.full_like(like, torch.nan)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolutions(kernel, stride, dtype):
    to = {"device": "cuda", "dtype": dtype}
    weight, bias = torch.randn(64, 32, kernel, kernel, **to) / kernel, torch.randn(64, **to)
    conv = convolution(weight, bias, stride, kernel // 2, [1, 32, 20, 28])
    assert type(conv) is CudnnConvolution
    x = torch.randn(2, 32, 20, 28, **to).contiguous(memory_format=torch.channels_last)
    plain = torch.nn.functional.conv2d(
        x.double(), weight.double(), bias.double(), stride, kernel // 2
    )
    other = torch.randn_like(plain).to(dtype).contiguous(memory_format=torch.channels_last)
    for add in (None, other):
        for relu in (False, True):
            expected = plain if add is None else plain + add.double()
            expected = expected.relu() if relu else expected
            given = None if add is None else add.clone()
            leave_nan_behind(other)
            found = conv(x, given, relu)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert relative_error(found, expected) < 2 * torch.finfo(dtype).eps + 1e-6


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_maps(dtype):
    to = {"device": "cuda", "dtype": dtype}
    weight, bias, x = (
        torch.randn(64, 32, **to) / 4,
        torch.randn(64, **to),
        torch.randn(2, 9, 32, **to),
    )
    expected = x.double() @ weight.double().mT + bias.double()
    mapping = linear(weight, bias, relu=True)
    assert type(mapping) is CudaLinear
    assert relative_error(mapping(x), expected.relu()) < 2 * torch.finfo(dtype).eps
    add = torch.randn(1, 9, 64, **to)
    found = linear(weight, bias)(x, add)
    assert relative_error(found, expected + add.double()) < 2 * torch.finfo(dtype).eps


@torch.inference_mode()
@pytest.mark.parametrize("name", ["fastinst-d1-r18-192", "fastinst-d3-r50d-dcn-640"])
def test_it_errs_like_the_model(name):
    exact, model = make_model(name).double(), make_model(name).cuda()
    batch = random_batch(model, (64, 96))
    expected = exact(batch.cpu().double())
    plain, engine = (
        relative_error(network(batch)["pred_masks"].cpu(), expected["pred_masks"])
        for network in (model, prepare(model))
    )
    assert engine < 3 * plain


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_can_be_captured(dtype):
    """Nothing in it waits for the GPU, or has a shape that depends on data."""
    network = prepare(make_model("fastinst-d3-r50d-dcn-640"), "cuda", dtype)
    batch, other = (random_batch(network, (64, 96)) for _ in range(2))
    constants = network.constants(64, 96)
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            network(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = network(batch)
    batch.copy_(other)
    graph.replay()
    for key, value in network(other).items():
        torch.testing.assert_close(captured[key], value)
    del constants
