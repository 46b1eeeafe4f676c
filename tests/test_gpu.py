"""What only a GPU can show of the kernels: streams, capture in a CUDA graph, a second device."""

import pytest
import torch
from test_kernels import ARGUMENTS, CPU_ONLY, need_kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NAMES = [name for name in ARGUMENTS if name not in CPU_ONLY]


def prepare(name: str, device: str = "cuda"):
    """An operator, its arguments on the GPU, and the tensors among them."""
    need_kernels("cuda")
    arguments = [
        argument.to(device) if isinstance(argument, torch.Tensor) else argument
        for argument in ARGUMENTS[name]()
    ]
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    return getattr(torch.ops.fastinst, name), arguments, tensors


def as_tuple(result) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_kernel_replays_with_new_numbers(name):
    operator, arguments, tensors = prepare(name)
    operator(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = as_tuple(operator(*arguments))
    _, _, others = prepare(name)
    for tensor, other in zip(tensors, others, strict=True):
        tensor.copy_(other)
    expected = as_tuple(operator(*arguments))
    graph.replay()
    for one, other in zip(captured, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_waits_for_its_stream(name):
    operator, arguments, tensors = prepare(name)
    expected = as_tuple(operator(*arguments))
    right = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # cycles, tens of milliseconds
        for tensor, number in zip(tensors, right, strict=True):
            tensor.copy_(number)
        found = as_tuple(operator(*arguments))
    torch.cuda.synchronize()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_runs_where_its_tensors_are(name):
    operator, arguments, _ = prepare(name, "cuda:1")
    found = as_tuple(operator(*arguments))
    assert {one.device for one in found} == {torch.device("cuda:1")}
    assert torch.cuda.current_device() == 0
    expected = as_tuple(
        operator(*(a.to(0) if isinstance(a, torch.Tensor) else a for a in arguments))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu())
