"""The CUDA kernels of attention_to_queries against the definition: emulated, and on a GPU.

They are those of masked_cross_attention without a mask; here rows are many and keys are few.
"""

import importlib

import emulated_attention
import pytest
import torch
from emulated import needs_emulator, needs_gpu
from emulated_attention import assert_as_good_as_plain, tensors

op = importlib.import_module("fastinst.ops.attention_to_queries")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RUNS = [
    pytest.param("emulator", marks=needs_emulator),
    pytest.param("cuda", marks=needs_gpu),
]


def forward(run, *inputs, chunk=None):
    if run == "emulator":
        return emulated_attention.attention(*inputs, chunk=chunk)
    return torch.ops.fastinst.attention_to_queries(*(x.cuda() for x in inputs)).cpu()


def backward(run, *inputs, chunk=None):
    if run == "emulator":
        return emulated_attention.attention_gradient(*inputs, chunk=chunk)
    grads = torch.ops.fastinst.attention_to_queries_backward(*(x.cuda() for x in inputs))
    return [x.cpu() for x in grads]


def check(run, query, key, value, chunk=None):
    grad = torch.randn(query.shape).to(query.dtype)
    plain = op.definition(query, key, value)
    actual = [
        forward(run, query, key, value, chunk=chunk),
        *backward(run, grad, plain, query, key, value, chunk=chunk),
    ]
    same_dtype = [plain, *op.backward_definition(grad, plain, query, key, value)]
    exact = [x.double() for x in (query, key, value)]
    expected = op.definition(*exact)
    expected = [expected, *op.backward_definition(grad.double(), expected, *exact)]
    assert_as_good_as_plain(actual, same_dtype, expected)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "heads", "rows", "keys", "dim", "chunk"),
    [
        (1, 2, 131, 13, 32, None),
        (2, 1, 37, 33, 32, 32),
        (1, 1, 19, 108, 32, None),
        (1, 1, 17, 41, 72, 32),
        (1, 1, 1, 1, 8, None),
    ],
)
def test_as_good_as_plain(run, dtype, batch, heads, rows, keys, dim, chunk):
    check(run, *tensors(batch, heads, rows, keys, dim, dtype), chunk)


@pytest.mark.parametrize("run", RUNS)
def test_memory_layouts(run):
    inputs = tensors(2, 3, 37, 11, 32, torch.float32)
    packed = [x.contiguous() for x in inputs]
    assert torch.equal(forward(run, *inputs), forward(run, *packed))


@pytest.mark.parametrize("run", RUNS)
def test_an_empty_batch(run):
    query, key, value = tensors(0, 2, 5, 7, 32, torch.float16)
    output = forward(run, query, key, value)
    assert output.shape == query.shape
    grads = backward(run, output, output, query, key, value)
    assert [x.shape for x in grads] == [query.shape, key.shape, value.shape]


@needs_gpu
def test_no_rows():
    query, key, value = tensors(2, 3, 0, 7, 32, torch.float32)
    output = forward("cuda", query, key, value)
    grads = backward("cuda", output, output, query, key, value)
    assert output.shape == query.shape
    assert all(x.count_nonzero() == 0 for x in grads)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 5, 33, 64, 100, 160])
def test_any_head_dimension(dim, dtype):
    check("cuda", *tensors(2, 3, 45, 7, dim, dtype))


def shifted(x):
    """Rows as far apart as vectors want, which begin where none may."""
    return torch.nn.functional.pad(x, (1, 15 - x.shape[3] % 8))[..., 1 : 1 + x.shape[3]]


LAYOUTS = {
    "the heads adjoin": lambda x: x.contiguous(memory_format=torch.channels_last),
    "shifted": shifted,
    "one for all": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


@needs_gpu
@pytest.mark.parametrize("dim", [1, 5, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_host_has_to_copy(layout, dim):
    inputs = [LAYOUTS[layout](x.cuda()) for x in tensors(2, 3, 45, 7, dim, torch.float32)]
    packed = [x.contiguous() for x in inputs]
    output = forward("cuda", *packed)
    assert torch.equal(forward("cuda", *inputs), output)
    expected = backward("cuda", packed[0], output, *packed)
    actual = backward("cuda", inputs[0], output, *inputs)
    assert all(map(torch.equal, actual, expected))


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_models_shapes(dtype):
    check("cuda", *tensors(1, 8, 8640, 108, 32, dtype))


@needs_gpu
def test_gradcheck():
    inputs = [x.cuda().requires_grad_() for x in tensors(2, 2, 11, 5, 4, torch.float64)]
    assert torch.autograd.gradcheck(op.attention_to_queries, inputs)
