"""The CUDA kernels of deform_conv2d against the definition: emulated, and on a GPU if there is one.

Emulated runs call the launchers of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import functools
import importlib
import math
import unittest.mock

import emulated
import pytest
import torch
from emulated import SCALARS, needs_emulator, needs_gpu

from fastinst.ops import active_kernels

module = importlib.import_module("fastinst.ops.deform_conv2d")


# Channels, outputs, kernel, size, stride, padding, dilation, weight groups, offset groups; each is
# here for what the others do not have.
CASES = {
    "odd groups": (6, 4, (3, 2), (5, 4), (2, 1), (1, 0), (2, 1), 2, 3),
    "vectors": (32, 40, (3, 3), (5, 8), (1, 1), (1, 1), (1, 1), 1, 1),
    "many channels": (80, 264, (1, 2), (4, 5), (1, 1), (0, 0), (1, 1), 1, 1),
    "vectors and groups": (96, 32, (1, 3), (5, 3), (1, 1), (1, 2), (1, 2), 2, 6),
    "one tap": (7, 5, (1, 1), (6, 13), (1, 1), (0, 0), (1, 1), 1, 7),
}


def make_inputs(case, dtype, batch=2, with_mask=True, wide=False):
    """Offsets reach outside of the image; some point nowhere. `wide`: all but the image is."""
    channels, outputs, kernel, size, stride, padding, dilation, groups, offset_groups = CASES[case]
    generator = torch.Generator().manual_seed(len(case))
    rand = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    out_size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    taps = offset_groups * math.prod(kernel)
    offset = 2 * rand(batch, 2 * taps, *out_size)
    if batch:
        offset.view(-1)[3:9] = torch.tensor([1e6, -1e30, math.inf, -math.inf, math.nan, -1.0])
    beside = torch.promote_types(dtype, torch.float32) if wide else dtype
    return {
        "input": rand(batch, channels, *size).to(dtype),
        "offset": offset.to(beside),
        "weight": rand(outputs, channels // groups, *kernel).to(dtype).to(beside),
        "bias": rand(outputs).to(beside),
        "mask": rand(batch, taps, *out_size).sigmoid().to(beside) if with_mask else None,
    }, {"stride": list(stride), "padding": list(padding), "dilation": list(dilation)}


def convert(inputs, dtype):
    return {name: None if x is None else x.to(dtype) for name, x in inputs.items()}


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def geometry_of(inputs, geometry):
    input, offset, weight = inputs["input"], inputs["offset"], inputs["weight"]
    numbers = [*input.shape, weight.shape[0], *offset.shape[2:], *weight.shape[2:]]
    numbers += geometry["stride"] + geometry["padding"] + geometry["dilation"]
    taps = weight.shape[2] * weight.shape[3]
    numbers += [input.shape[1] // weight.shape[1], offset.shape[1] // (2 * taps)]
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.fixture(params=SCALARS, ids=str)
def dtype(request):
    return request.param


def samples(inputs, geometry):
    """The arguments of `sampling`."""
    offset, mask = inputs["offset"], inputs["mask"]
    strides = [*offset.stride(), *((0,) * 4 if mask is None else mask.stride())]
    wide = offset.dtype != inputs["input"].dtype
    return geometry_of(inputs, geometry), offset, mask, torch.tensor(strides), wide


def emulate(inputs, geometry, relu=False):
    """The launcher's output for these, in the memory format of the input."""
    input, weight = inputs["input"], inputs["weight"]
    output = torch.full(
        (input.shape[0], weight.shape[0], *inputs["offset"].shape[2:]), math.nan, dtype=input.dtype
    )
    last = not input.is_contiguous()
    output = channels_last(output) if last else output
    launch = getattr(kernels(), f"forward_{SCALARS[input.dtype]}")
    launch(
        *samples(inputs, geometry),
        channels_last(input),
        channels_last(weight.to(input.dtype)),
        inputs["bias"],
        output,
        last,
        relu,
    )
    return output


def emulate_backward(inputs, geometry, grad):
    input, offset, weight, mask = (inputs[k] for k in ("input", "offset", "weight", "mask"))
    wide = torch.promote_types(input.dtype, torch.float32)
    grad_input = channels_last(torch.full(input.shape, math.nan, dtype=wide))
    grad_offset = torch.full(offset.shape, math.nan, dtype=offset.dtype)
    grad_mask = None if mask is None else torch.full(mask.shape, math.nan, dtype=mask.dtype)
    grad_weight = torch.full(weight.shape, math.nan, dtype=weight.dtype)
    launch = getattr(kernels(), f"backward_{SCALARS[input.dtype]}")
    launch(
        *samples(inputs, geometry),
        channels_last(grad),
        channels_last(input),
        channels_last(weight.to(input.dtype)),
        grad_input,
        grad_offset,
        grad_mask,
        grad_weight,
        rounding=8 * torch.finfo(wide).eps,
    )
    return grad_input.to(input.dtype), grad_offset, grad_weight, None, grad_mask


def exact_and_plain(inputs, geometry, relu):
    """The definition in float64, and in the inputs' dtype; and the first with rounded columns."""
    plain = module.definition(**inputs, **geometry, relu=relu)
    inputs = convert(inputs, torch.float64)
    exact = module.definition(**inputs, **geometry, relu=relu)
    with rounded_columns(plain.dtype):
        return exact, plain, module.definition(**inputs, **geometry, relu=relu)


def exact_and_plain_gradients(inputs, geometry, grad):
    """The same of the gradients, in the definition's order."""
    given = {"grad": grad, **{k: x for k, x in inputs.items() if k != "bias"}}
    plain = module.backward_definition(**given, **geometry)
    given = convert(given, torch.float64)
    exact = module.backward_definition(**given, **geometry)
    with rounded_columns(grad.dtype):
        return exact, plain, module.backward_definition(**given, **geometry)


def rounded_columns(dtype):
    """Tensor cores take the columns in 16 bits, where the definition keeps 32."""
    gather_columns = module.gather_columns

    def gather_rounded(*args):
        columns = gather_columns(*args)
        return columns.to(dtype).to(columns.dtype)

    return unittest.mock.patch.object(module, "gather_columns", gather_rounded)


def assert_as_good(actual, exact, plain, exact_of_rounded, size, one_rounding):
    """At most twice PyTorch's error, and what a sum of `size` in another order may differ by.

    A column next to the middle of two 16-bit numbers may be rounded to either.
    """
    assert actual.shape == exact.shape and actual.dtype == plain.dtype
    eps = torch.finfo(torch.promote_types(plain.dtype, torch.float32)).eps
    floor = 4 * eps * size + one_rounding
    own = (plain.double() - exact).abs().max().item()
    error = (actual.double() - exact_of_rounded).abs().max().item()
    assert error <= 2 * own + floor, f"an error of {error}, PyTorch's is {own}"


def last_bit(columns, factors) -> float:
    """The most that one column's last bit can add, for columns no larger than these."""
    eps = torch.finfo(columns.dtype).eps
    return eps * (columns.abs().max() * factors.abs().max()).item() if columns.numel() else 0.0


def sizes(tensors):
    """For a definition to sum the sizes of its terms, instead of the terms."""
    tensors = convert(tensors, torch.float64)
    return {k: x if k == "offset" or x is None else x.abs() for k, x in tensors.items()}


def check_forward(forward, inputs, geometry, relu=False):
    output = forward(inputs, geometry, relu)
    size = module.definition(**sizes(inputs), **geometry, relu=False).max().item()
    one = last_bit(inputs["input"], inputs["weight"])
    assert_as_good(output, *exact_and_plain(inputs, geometry, relu), size, one)
    return output


def check_backward(backward, inputs, geometry):
    generator = torch.Generator().manual_seed(1)
    shape = module.definition(**inputs, **geometry, relu=False).shape
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs["input"].dtype)
    terms = {"grad": grad, **{k: x for k, x in inputs.items() if k != "bias"}}
    if terms["mask"] is None:
        terms["mask"] = torch.ones_like(terms["offset"][:, ::2])
    size = [x.max().item() for x in module.backward_definition(**sizes(terms), **geometry)]
    # The weights' derivatives sum to 2 where the weights themselves, in the mask's, sum to 1.
    size[1] = 2 * size[4]
    one = [0, 0, last_bit(inputs["input"], grad), 0, 0]
    expected = zip(*exact_and_plain_gradients(inputs, geometry, grad), size, one, strict=True)
    for actual, references in zip(backward(inputs, geometry, grad), expected, strict=True):
        if actual is not None:
            assert_as_good(actual, *references)


@functools.cache
def kernels():
    calls = [(way, scalar) for way in ("forward", "backward") for scalar in SCALARS.values()]
    entries = "".join(f"EMULATED({way}_{scalar}, {way}<{scalar}>)\n" for way, scalar in calls)
    return emulated.build(f'#include "deform_conv2d.h"\n{entries}')


def to_gpu(inputs):
    return {name: None if x is None else x.cuda() for name, x in inputs.items()}


def forward_on_gpu(inputs, geometry, relu=False):
    return torch.ops.fastinst.deform_conv2d(**to_gpu(inputs), **geometry, relu=relu).cpu()


def backward_on_gpu(inputs, geometry, grad):
    inputs = to_gpu({"grad": grad, **{k: x for k, x in inputs.items() if k != "bias"}})
    gradients = torch.ops.fastinst.deform_conv2d_backward(**inputs, **geometry)
    return *(x.cpu() for x in gradients[:4]), None if inputs["mask"] is None else gradients[4].cpu()


@pytest.fixture(
    params=[pytest.param("emulated", marks=needs_emulator), pytest.param("gpu", marks=needs_gpu)]
)
def device(request):
    return request.param


@pytest.fixture
def forward(device):
    return emulate if device == "emulated" else forward_on_gpu


@pytest.fixture
def backward(device):
    return emulate_backward if device == "emulated" else backward_on_gpu


@needs_gpu
def test_the_gpu_runs_the_compiled_kernels():
    active = active_kernels("cuda")
    assert active["deform_conv2d"] == active["deform_conv2d_backward"] == "compiled"


@pytest.mark.parametrize("case", CASES)
def test_forward(forward, dtype, case):
    check_forward(forward, *make_inputs(case, dtype))


@pytest.mark.parametrize("case", CASES)
def test_backward(backward, dtype, case):
    check_backward(backward, *make_inputs(case, dtype))


@pytest.mark.parametrize("case", ["odd groups", "vectors"])
def test_what_may_be_left_out(forward, backward, dtype, case):
    inputs, geometry = make_inputs(case, dtype, batch=1, with_mask=False)
    inputs["bias"] = None
    check_forward(forward, inputs, geometry)
    check_backward(backward, inputs, geometry)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["odd groups", "vectors"])
def test_what_may_be_wider_than_the_image(forward, backward, dtype, case):
    inputs, geometry = make_inputs(case, dtype, batch=1, wide=True)
    check_forward(forward, inputs, geometry)
    check_backward(backward, inputs, geometry)


def test_layouts_and_relu(forward, dtype):
    inputs, geometry = make_inputs("vectors", dtype)
    output = check_forward(forward, inputs, geometry, relu=True)
    assert (output == 0).any() and (output > 0).any()
    last = {k: channels_last(x) if x.dim() == 4 else x for k, x in inputs.items()}
    output_last = forward(last, geometry, relu=True)
    assert output_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output_last, output)


def test_an_empty_batch(forward, dtype):
    inputs, geometry = make_inputs("vectors", dtype, batch=0)
    assert forward(inputs, geometry).shape == (0, 40, 5, 8)
