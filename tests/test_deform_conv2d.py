"""ops.deform_conv2d against its definition in loops."""

import math
import os

import pytest
import torch
import torch.nn.functional as F

from fastinst.ops import deform_conv2d

GEOMETRY = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}
KERNEL = (3, 2)
WEIGHT_GROUPS, OFFSET_GROUPS = 2, 3


def make_inputs(batch=2, with_mask=True, with_bias=True, dtype=torch.float64):
    """6 channels of 5x4 to 4 channels of 2x3; offsets keep clear of the integers' kinks."""
    taps = OFFSET_GROUPS * math.prod(KERNEL)
    whole = torch.randint(-2, 3, (batch, 2 * taps, 2, 3))
    offset = whole + torch.empty(whole.shape, dtype=torch.float64).uniform_(0.2, 0.8)
    inputs = {
        "input": torch.randn(batch, 6, 5, 4, dtype=torch.float64),
        "offset": offset,
        "weight": torch.randn(4, 6 // WEIGHT_GROUPS, *KERNEL, dtype=torch.float64),
        "bias": torch.randn(4, dtype=torch.float64) if with_bias else None,
        "mask": torch.rand(batch, taps, 2, 3, dtype=torch.float64) if with_mask else None,
    }
    return {k: None if v is None else v.to(dtype).requires_grad_() for k, v in inputs.items()}


def tensors(inputs):
    return [tensor for tensor in inputs.values() if tensor is not None]


def sample(plane, y, x):
    """Bilinear, zeros outside."""
    if not (math.isfinite(y) and math.isfinite(x)):
        return 0.0
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < len(plane) and 0 <= column < len(plane[0]):
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row][column]
    return total


def definition(input, offset, weight, bias, mask, stride, padding, dilation):
    planes, offsets, weights = input.tolist(), offset.tolist(), weight.tolist()
    masks = None if mask is None else mask.tolist()
    batch, channels = input.shape[:2]
    out_channels, group_channels, kernel_height, kernel_width = weight.shape
    taps = kernel_height * kernel_width
    per_offset_group = channels // (offset.shape[1] // (2 * taps))
    per_weight_group = out_channels // (channels // group_channels)
    out = torch.zeros(batch, out_channels, *offset.shape[2:], dtype=torch.float64)
    for b, o, row, column in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        total = 0.0 if bias is None else bias[o].item()
        for i in range(group_channels):
            c = o // per_weight_group * group_channels + i
            for tap in range(taps):
                k = c // per_offset_group * taps + tap
                dy, dx = (offsets[b][2 * k + axis][row][column] for axis in (0, 1))
                y = row * stride[0] - padding[0] + tap // kernel_width * dilation[0] + dy
                x = column * stride[1] - padding[1] + tap % kernel_width * dilation[1] + dx
                value = sample(planes[b][c], y, x)
                value *= 1.0 if masks is None else masks[b][k][row][column]
                total += weights[o][i][tap // kernel_width][tap % kernel_width] * value
        out[b, o, row, column] = total
    return out


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_definition(batch, with_mask, with_bias):
    inputs = make_inputs(batch, with_mask, with_bias)
    expected = definition(**inputs, **GEOMETRY)
    torch.testing.assert_close(deform_conv2d(**inputs, **GEOMETRY), expected)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients(with_mask, with_bias):
    inputs = make_inputs(2, with_mask, with_bias)
    names = [name for name, tensor in inputs.items() if tensor is not None]

    def by_position(*args):
        return deform_conv2d(**dict(zip(names, args, strict=True)), **GEOMETRY)

    # On a GPU the input's gradient is a sum by atomics: its last bits depend on their order.
    assert torch.autograd.gradcheck(by_position, tensors(inputs), nondet_tol=1e-12)


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_memory_layout_does_not_matter(layout):
    inputs = make_inputs()
    expected = deform_conv2d(**inputs, **GEOMETRY)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, tensors(inputs), grad)
    if layout == "channels_last":
        odd = {
            k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v
            for k, v in inputs.items()
        }
        grad = grad.to(memory_format=torch.channels_last)
    else:
        odd = {k: v.repeat_interleave(2, dim=-1)[..., ::2] for k, v in inputs.items()}
        grad = grad.repeat_interleave(2, dim=-1)[..., ::2]
    actual = deform_conv2d(**odd, **GEOMETRY)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, tensors(odd), grad), expected_grads)


def test_an_empty_batch():
    inputs = make_inputs(batch=0)
    out = deform_conv2d(**inputs, **GEOMETRY)
    assert out.shape == (0, 4, 2, 3)
    out.sum().backward()
    for tensor in tensors(inputs):
        assert tensor.grad.shape == tensor.shape and not tensor.grad.any()


def test_zero_offsets_are_a_plain_convolution():
    inputs = make_inputs(with_mask=False)
    inputs["offset"] = torch.zeros_like(inputs["offset"])
    expected = F.conv2d(
        inputs["input"], inputs["weight"], inputs["bias"], **GEOMETRY, groups=WEIGHT_GROUPS
    )
    torch.testing.assert_close(deform_conv2d(**inputs, **GEOMETRY), expected)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, -2), (-1, 3), (5, 4), (-5, -4)])
def test_whole_offsets_are_a_plain_convolution_of_the_shifted_input(dy, dx):
    # float64, as cuDNN's convolutions of float32 are of TF32.
    input, weight = torch.randn(1, 3, 5, 4).double(), torch.randn(2, 3, 3, 3).double()
    offset = torch.tensor([dy, dx]).double().repeat(9)[None, :, None, None].expand(-1, -1, 5, 4)
    # Twelve zeros all round hold every shift; the window starts where the kernel's first tap is.
    wide = F.pad(input, (12, 12, 12, 12))
    shifted = wide[:, :, 11 + dy : 18 + dy, 11 + dx : 17 + dx]
    expected = F.conv2d(shifted, weight)
    actual = deform_conv2d(input, offset, weight, padding=1)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("value", [1e6, -1e6, 1e30, math.inf, -math.inf, math.nan])
def test_offsets_far_outside_contribute_nothing(value):
    inputs = make_inputs()
    with torch.no_grad():
        inputs["offset"][0] = value  # every tap of the first image, but not the second's
    out = deform_conv2d(**inputs, **GEOMETRY)
    torch.testing.assert_close(out, definition(**inputs, **GEOMETRY))
    assert torch.equal(out[0], inputs["bias"][:, None, None].expand(4, 2, 3))
    out.sum().backward()
    for tensor in tensors(inputs):
        assert tensor.grad.isfinite().all()
    assert not inputs["offset"].grad[0].any() and inputs["offset"].grad[1].any()


def test_the_zeros_outside_begin_a_whole_pixel_away():
    """At -1/2 half of the border pixel is left, at -1 nothing."""
    input, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    for shift, share in ((-0.5, 0.5), (-0.75, 0.25), (-1.0, 0.0), (2.5, 0.5), (3.0, 0.0)):
        offset = torch.zeros(1, 2, 3, 3)
        offset[:, 0, 0] = shift
        out = deform_conv2d(input, offset, weight)
        assert out[0, 0, 0].tolist() == [share] * 3


@pytest.mark.skipif(
    os.environ.get("FASTINST_DEVICE", "cpu") != "cpu",
    reason="tensor cores take rounded columns: test_deform_conv2d_cuda.py has what to expect",
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_only_the_result(dtype):
    inputs = make_inputs(dtype=dtype)
    exact = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    out, expected = deform_conv2d(**inputs, **GEOMETRY), deform_conv2d(**exact, **GEOMETRY)
    assert out.dtype == dtype
    grad = torch.randn_like(out)
    results = (out, *torch.autograd.grad(out, tensors(inputs), grad))
    references = (expected, *torch.autograd.grad(expected, tensors(exact), grad.double()))
    for result, reference in zip(results, references, strict=True):
        assert result.dtype == dtype
        bound = torch.finfo(dtype).eps / 2 * reference.abs() + 1e-5 * reference.abs().max()
        assert ((result.double() - reference).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_sampling_and_products_in_float32(dtype):
    inputs = make_inputs(dtype=torch.float32)
    expected = deform_conv2d(**inputs, **GEOMETRY)
    with torch.autocast("cpu", dtype):
        assert torch.equal(deform_conv2d(**inputs, **GEOMETRY), expected)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_registration(with_mask, with_bias):
    inputs = make_inputs(2, with_mask, with_bias)
    args = [inputs[k] for k in ("input", "offset", "weight", "bias", "mask")]
    geometry = [list(value) for value in GEOMETRY.values()]
    for relu in (False, True):
        torch.library.opcheck(torch.ops.fastinst.deform_conv2d.default, (*args, *geometry, relu))
    input, offset, weight, _, mask = (x if x is None else x.detach() for x in args)
    torch.library.opcheck(
        torch.ops.fastinst.deform_conv2d_backward.default,
        (torch.randn(2, 4, 2, 3).double(), input, offset, weight, mask, *geometry),
    )


def test_relu_follows_the_bias():
    inputs = make_inputs()
    plain = deform_conv2d(**inputs, **GEOMETRY)
    out = deform_conv2d(**inputs, **GEOMETRY, relu=True)
    assert 0 < (plain > 0).sum() < plain.numel()
    assert torch.equal(out, plain.relu())
    grad = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, tensors(inputs), grad),
        torch.autograd.grad(plain, tensors(inputs), grad * (plain > 0)),
    )


def test_relu_stops_infinite_gradients():
    """As PyTorch's does: where loss scaling overflows, only what was positive must notice."""
    inputs = make_inputs()
    inputs["bias"] = torch.full_like(inputs["bias"], -1e3).requires_grad_()
    out = deform_conv2d(**inputs, **GEOMETRY, relu=True)
    assert (out == 0).all()
    for grad in torch.autograd.grad(out, tensors(inputs), torch.full_like(out, math.inf)):
        assert (grad == 0).all()


@pytest.mark.parametrize("relu", [False, True])
def test_channels_last_stays_channels_last(relu):
    inputs = make_inputs()
    expected = deform_conv2d(**inputs, **GEOMETRY, relu=relu)
    inputs["input"] = inputs["input"].detach().contiguous(memory_format=torch.channels_last)
    inputs["input"].requires_grad_()
    out = deform_conv2d(**inputs, **GEOMETRY, relu=relu)
    assert expected.is_contiguous()
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out.sum(), inputs["input"])
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("with_mask", [True, False])
def test_compiled_equals_eager(with_mask):
    inputs = make_inputs(2, with_mask, dtype=torch.float32)
    compiled = torch.compile(deform_conv2d, fullgraph=True, backend="aot_eager")
    expected, actual = deform_conv2d(**inputs, **GEOMETRY), compiled(**inputs, **GEOMETRY)
    assert torch.equal(actual, expected)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, tensors(inputs), grad)
    actual_grads = torch.autograd.grad(actual, tensors(inputs), grad)
    torch.testing.assert_close(actual_grads, expected_grads)  # on a GPU summed in any order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.rand(6, 5, 4)}, "^input must have 4 dimensions"),
        ({"input": torch.rand(2, 6, 0, 4)}, "^input must have channels and pixels"),
        ({"offset": torch.rand(36, 2, 3)}, "^offset must have 4 dimensions"),
        ({"weight": torch.rand(4, 3, 6)}, "^weight must have 4 dimensions"),
        ({"mask": torch.rand(18, 2, 3)}, "^mask must have 4 dimensions"),
        ({"offset": torch.rand(2, 36, 3, 2)}, r"^offset must have shape \(2, 36, 2, 3\)"),
        ({"offset": torch.rand(1, 36, 2, 3)}, r"^offset must have shape \(2, 36, 2, 3\)"),
        ({"offset": torch.rand(2, 35, 2, 3)}, "^offset must have 2 . groups . 6 channels"),
        ({"offset": torch.rand(2, 48, 2, 3)}, "^offset must have 2 . groups . 6 channels"),
        ({"offset": torch.rand(2, 0, 2, 3)}, "^offset must have 2 . groups . 6 channels"),
        ({"weight": torch.rand(4, 3, 0, 2)}, "^weight must have taps"),
        ({"weight": torch.rand(4, 4, 3, 2)}, "^weight .* does not fit an input of 6 channels"),
        ({"weight": torch.rand(3, 3, 3, 2)}, "^weight .* does not fit an input of 6 channels"),
        ({"bias": torch.rand(3)}, r"^bias must have shape \(4,\)"),
        ({"mask": torch.rand(2, 36, 2, 3)}, r"^mask must have shape \(2, 18, 2, 3\)"),
        ({"stride": 0}, "^stride must be two integers of at least 1"),
        ({"padding": (0, -1)}, "^padding must be two integers of at least 0"),
        ({"dilation": (1, 1, 1)}, "^dilation must be two integers of at least 1"),
        ({"input": torch.ones(2, 6, 5, 4, dtype=torch.int64)}, "^input must be a floating-point"),
        ({"weight": torch.ones(4, 3, 3, 2, dtype=torch.bool)}, "^weight must be a floating-point"),
        ({"bias": torch.ones(4, dtype=torch.int64)}, "^bias must be a floating-point"),
        ({"offset": torch.rand(2, 36, 2, 3, device="meta")}, "^offset is on meta"),
        ({"weight": torch.rand(4, 3, 3, 2, device="meta")}, "^weight is on meta"),
        ({"bias": torch.rand(4, device="meta")}, "^bias is on meta"),
        ({"mask": torch.rand(2, 18, 2, 3, device="meta")}, "^mask is on meta"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**make_inputs() | GEOMETRY | change)


def test_one_number_serves_both_directions():
    input, weight = torch.randn(1, 2, 7, 7), torch.randn(3, 2, 3, 3)
    out = deform_conv2d(input, torch.zeros(1, 18, 3, 3), weight, None, 2, 1, 2)
    expected = F.conv2d(input, weight, None, 2, 1, 2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
