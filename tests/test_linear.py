import pytest
import torch
import torch.nn.functional as F

from fastinst import ops
from fastinst.ops.linear import FEW_ROWS, definition

onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN"
)


def arguments(*shape, dtype=torch.float32):
    """x [*shape], weight, bias, and a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (40, shape[-1]), (40,), (*shape[:-1], 40))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def results(function, *inputs, relu):
    """The value and the three gradients."""
    *inputs, grad = inputs
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, relu)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def uses_onednn(*inputs):
    return "OneDNN" in ops.linear(*inputs).grad_fn.name()


@onednn
@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize("shape", ((2, FEW_ROWS, 48), (FEW_ROWS + 3, 17), (2, 300, 2, 1)))
def test_is_as_exact_as_pytorchs_own(shape, relu):
    inputs = arguments(*shape)
    exact = results(definition, *(x.double() for x in inputs), relu=relu)
    own = results(definition, *inputs, relu=relu)
    ours = results(ops.linear, *inputs, relu=relu)
    for truth, a, b in zip(exact, own, ours, strict=True):
        assert b.dtype == torch.float32 and b.shape == truth.shape
        largest = truth.abs().max()
        assert (b - truth).abs().max() <= 2 * (a - truth).abs().max() + 1e-6 * largest


@onednn
def test_rows_may_lie_anywhere_in_memory():
    x, weight, bias, grad = arguments(2, 48, FEW_ROWS)
    weight, grad = torch.randn(40, 48), torch.randn(2, 40, FEW_ROWS)
    moved = x.mT, weight, bias, grad.mT  # neither the rows nor their gradient are contiguous
    assert uses_onednn(moved[0], weight.requires_grad_(), bias)
    copied = [t.detach().contiguous() for t in moved]
    for a, b in zip(
        results(ops.linear, *moved, relu=True), results(ops.linear, *copied, relu=True), strict=True
    ):
        torch.testing.assert_close(a, b)


@onednn
@pytest.mark.parametrize("wanted", range(3))
def test_a_gradient_that_nobody_wants_is_left_out(wanted):
    *inputs, grad = arguments(FEW_ROWS, 16)
    inputs = [x.requires_grad_(i == wanted) for i, x in enumerate(inputs)]
    ops.linear(*inputs).backward(grad)
    expected = results(definition, *inputs, grad, relu=False)[1 + wanted]
    for i, x in enumerate(inputs):
        assert (x.grad is None) == (i != wanted)
    torch.testing.assert_close(inputs[wanted].grad, expected, rtol=1e-5, atol=1e-4)


@onednn
def test_where_pytorchs_own_product_serves_better_it_is_taken():
    x, weight, bias, _ = arguments(FEW_ROWS, 16)
    weight.requires_grad_()
    assert uses_onednn(x, weight, bias)
    assert not uses_onednn(x[1:], weight, bias)  # few rows
    assert not uses_onednn(x.double(), weight.double(), bias.double())
    with torch.no_grad():  # what is exported or compiled sees nothing new
        torch.testing.assert_close(
            ops.linear(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(x, weight, bias).dtype == torch.bfloat16
    assert ops.linear(x[:0], weight, bias).shape == (0, 40)


def test_float64_passes_gradcheck():
    *inputs, _ = arguments(2, 5, 3, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: ops.linear(*x, relu=True), inputs)
