"""The CPU kernels of ops.deform_conv2d against the definition, whose tests are next door."""

import importlib
import math

import pytest
import torch
from cpu_kernels import (
    DTYPES,
    assert_as_good,
    assert_threads_do_not_matter,
    run_lowered,
    skip_unless_compiled,
)

from fastinst import ops

pytestmark = skip_unless_compiled("deform_conv2d")

module = importlib.import_module("fastinst.ops.deform_conv2d")  # the name in ops is the function
forward = torch.ops.fastinst.deform_conv2d
backward = torch.ops.fastinst.deform_conv2d_backward

# channels, size, out_channels, weight groups, offset groups, kernel, stride, padding, dilation
CASES = {
    # Every slice and tile is ragged, and slices end where weight or offset groups do.
    "odd": (6, (5, 4), 4, 2, 3, (3, 2), (2, 1), (1, 0), (2, 1)),
    # More than one block, panel, tile and slice of everything, and a rest of each.
    "large": (35, (12, 13), 261, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "wide": (70, (7, 9), 75, 1, 2, (1, 3), (1, 2), (0, 1), (1, 3)),
    "depthwise": (5, (9, 11), 10, 5, 1, (2, 2), (1, 1), (1, 1), (1, 1)),
}


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def make_case(name="odd", dtype=torch.float32, batch=2, with_mask=True, with_bias=True):
    """The operator's tensors by name, and its stride, padding and dilation."""
    channels, size, out_channels, groups, offset_groups, kernel, *geometry = CASES[name]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, *geometry, strict=True)
    ]
    taps = offset_groups * math.prod(kernel)
    offset = 2 * torch.randn(batch, 2 * taps, *out, dtype=torch.float64)
    if out[1] > 2:
        offset[:, :, 0, 1] = offset[:, :, 0, 1].round()  # exactly on pixels
        offset[:, :, 0, 2] *= 10  # outside
    tensors = {
        "input": torch.randn(batch, channels, *size, dtype=torch.float64),
        "offset": offset,
        "weight": torch.randn(out_channels, channels // groups, *kernel, dtype=torch.float64),
        "bias": torch.randn(out_channels, dtype=torch.float64) if with_bias else None,
        "mask": torch.rand(batch, taps, *out, dtype=torch.float64) if with_mask else None,
    }
    return {k: v if v is None else v.to(dtype) for k, v in tensors.items()}, geometry


def cast(tensors, dtype):
    return {k: v if v is None else v.to(dtype) for k, v in tensors.items()}


def run(function, tensors, geometry, relu=False):
    return function(*tensors.values(), *map(list, geometry), relu)


def run_backward(function, grad, tensors, geometry):
    tensors = [value for key, value in tensors.items() if key != "bias"]
    return function(grad, *tensors, *map(list, geometry))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_forward(name, dtype, with_mask, relu):
    tensors, geometry = make_case(name, dtype, with_mask=with_mask, with_bias=with_mask)
    actual = run(forward, tensors, geometry, relu)
    plain = run(module.definition, tensors, geometry, relu)
    exact = run(module.definition, cast(tensors, torch.float64), geometry, relu)
    assert actual.is_contiguous()
    assert_as_good(actual, plain, exact)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_backward(name, dtype, with_mask):
    tensors, geometry = make_case(name, dtype, with_mask=with_mask)
    grad = torch.randn_like(run(forward, tensors, geometry))
    actual = run_backward(backward, grad, tensors, geometry)
    plain = run_backward(module.backward_definition, grad, tensors, geometry)
    exact = run_backward(
        module.backward_definition, grad.double(), cast(tensors, torch.float64), geometry
    )
    for gradients in zip(actual, plain, exact, strict=True):
        assert gradients[0].is_contiguous()
        assert_as_good(*gradients)


@pytest.mark.parametrize("other", [torch.float64, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("converted", ["input", "offset", "weight", "bias", "mask"])
def test_mixed_dtypes(converted, dtype, other):
    tensors, geometry = make_case("wide", dtype)
    tensors[converted] = tensors[converted].to(other)
    exact_tensors = cast(tensors, torch.float64)
    actual = run(forward, tensors, geometry)
    plain = run(module.definition, tensors, geometry)
    assert_as_good(actual, plain, run(module.definition, exact_tensors, geometry))
    grad = torch.randn_like(actual)
    actual = run_backward(backward, grad, tensors, geometry)
    plain = run_backward(module.backward_definition, grad, tensors, geometry)
    exact = run_backward(module.backward_definition, grad.double(), exact_tensors, geometry)
    for gradients in zip(actual, plain, exact, strict=True):
        assert_as_good(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["odd", "large"])
def test_channels_last_stays_channels_last(name, dtype):
    tensors, geometry = make_case(name, dtype)
    expected = run(forward, tensors, geometry)
    grad = torch.randn_like(expected)
    expected_grads = run_backward(backward, grad, tensors, geometry)
    tensors["input"] = tensors["input"].to(memory_format=torch.channels_last)
    actual = run(forward, tensors, geometry)
    assert actual.is_contiguous(memory_format=torch.channels_last) and not actual.is_contiguous()
    assert torch.equal(actual, expected)
    for layout in (torch.channels_last, torch.contiguous_format):
        grads = run_backward(backward, grad.to(memory_format=layout), tensors, geometry)
        assert grads[0].is_contiguous(memory_format=torch.channels_last)
        assert all(gradient.is_contiguous() for gradient in grads[1:])
        for gradient, expected_grad in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(gradient, expected_grad)


@pytest.mark.parametrize("name", ["odd", "wide"])
def test_strided_tensors(name):
    tensors, geometry = make_case(name)
    strided = {k: v.repeat_interleave(2, dim=-1)[..., ::2] for k, v in tensors.items()}
    expected = run(forward, tensors, geometry)
    assert torch.equal(run(forward, strided, geometry), expected)
    grad = torch.randn_like(expected)
    for actual, expected in zip(
        run_backward(backward, grad.mT.contiguous().mT, strided, geometry),
        run_backward(backward, grad, tensors, geometry),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_an_empty_batch():
    tensors, geometry = make_case(batch=0)
    out = run(forward, tensors, geometry)
    assert out.shape == (0, 4, 2, 3)
    grads = run_backward(backward, out, tensors, geometry)
    for gradient, tensor in zip(grads, tensors.values(), strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_no_output_channels():
    tensors, geometry = make_case()
    tensors["weight"], tensors["bias"] = tensors["weight"][:0], tensors["bias"][:0]
    out = run(forward, tensors, geometry)
    assert out.shape == (2, 0, 2, 3)
    for gradient in run_backward(backward, out, tensors, geometry):
        assert not gradient.any()


def test_an_input_without_pixels_is_refused():
    tensors, geometry = make_case()
    tensors["input"] = tensors["input"][:, :, :0]
    with pytest.raises(RuntimeError, match="input must have pixels"):
        run(forward, tensors, geometry)


@pytest.mark.parametrize("value", [1e6, -1e6, 1e30, math.inf, -math.inf, math.nan])
def test_offsets_far_outside_contribute_nothing(value):
    tensors, geometry = make_case()
    tensors["offset"][0] = value  # every tap of the first image, but not the second's
    out = run(forward, tensors, geometry)
    torch.testing.assert_close(out, run(module.definition, tensors, geometry))
    assert torch.equal(out[0], tensors["bias"][:, None, None].expand_as(out[0]))
    grad = torch.randn_like(out)
    actual = run_backward(backward, grad, tensors, geometry)
    expected = run_backward(module.backward_definition, grad, tensors, geometry)
    torch.testing.assert_close(actual, expected)
    assert not actual[1][0].any() and actual[1][1].any()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_non_finite_pixels_reach_the_same_outputs(value):
    tensors, geometry = make_case("large")
    tensors["input"][:, 3, 0, 0] = value
    tensors["input"][:, 20, 5, 7] = value
    for relu in (False, True):
        out = run(forward, tensors, geometry, relu)
        expected = run(module.definition, tensors, geometry, relu)
        assert expected.isnan().any() and not expected.isnan().all()
        assert torch.equal(out.isfinite(), expected.isfinite())
        assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("with_mask", [True, False])
def test_gradients(with_mask):
    tensors, geometry = make_case(dtype=torch.float64, with_mask=with_mask, with_bias=with_mask)
    # Clear of the pixels, where the gradient jumps.
    whole = torch.randint_like(tensors["offset"], -2, 3)
    tensors["offset"] = whole + torch.empty_like(whole).uniform_(0.2, 0.8)
    names = [name for name, tensor in tensors.items() if tensor is not None]

    def by_position(*args):
        by_name = dict(zip(names, args, strict=True))
        stride, padding, dilation = geometry
        return ops.deform_conv2d(**by_name, stride=stride, padding=padding, dilation=dilation)

    args = [tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(by_position, args)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_mask", [True, False])
def test_registration(with_mask, layout):
    tensors, geometry = make_case(dtype=torch.float64, with_mask=with_mask)
    tensors["input"] = tensors["input"].to(memory_format=layout)
    grad = torch.randn_like(run(forward, tensors, geometry))
    args = [value for key, value in tensors.items() if key != "bias"]
    torch.library.opcheck(backward.default, (grad, *args, *map(list, geometry)))
    args = [None if value is None else value.requires_grad_() for value in tensors.values()]
    torch.library.opcheck(forward.default, (*args, *map(list, geometry), True))


@pytest.mark.parametrize("name", ["odd", "large"])
def test_the_number_of_threads_does_not_matter(name):
    tensors, geometry = make_case(name)
    grad = torch.randn_like(run(forward, tensors, geometry))

    def results():
        grads = run_backward(backward, grad, tensors, geometry)
        # Without that of the bias, PyTorch's own sum.
        return [run(forward, tensors, geometry), *grads[:3], grads[4]]

    assert_threads_do_not_matter(results)


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lower_instruction_sets(name):
    run_lowered(name, __file__, "(test_forward or test_backward) and (float32 or float64)")
