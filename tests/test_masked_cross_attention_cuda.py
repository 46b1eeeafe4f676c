"""The CUDA kernels of masked_cross_attention against the definition: emulated, and on a GPU.

Emulated runs call the launchers of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import importlib

import emulated
import emulated_attention
import pytest
import torch
from emulated import needs_emulator, needs_gpu
from emulated_attention import assert_as_good_as_plain, tensors

from fastinst.ops import pack_bits

op = importlib.import_module("fastinst.ops.masked_cross_attention")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RUNS = [
    pytest.param("emulator", marks=needs_emulator),
    pytest.param("cuda", marks=needs_gpu),
]


def forward(run, *inputs, chunk=None):
    if run == "emulator":
        return emulated_attention.attention(*inputs, chunk)
    inputs = [x.cuda() for x in inputs]
    return torch.ops.fastinst.masked_cross_attention(*inputs).cpu()


def backward(run, *inputs, chunk=None):
    if run == "emulator":
        return emulated_attention.attention_gradient(*inputs, chunk)
    inputs = [x.cuda() for x in inputs]
    return [x.cpu() for x in torch.ops.fastinst.masked_cross_attention_backward(*inputs)]


def check(run, query, key, value, attend, chunk=None):
    grad = torch.randn(query.shape).to(query.dtype)
    plain = op.definition(query, key, value, attend)
    actual = [
        forward(run, query, key, value, attend, chunk=chunk),
        *backward(run, grad, plain, query, key, value, attend, chunk=chunk),
    ]
    same_dtype = [plain, *op.backward_definition(grad, plain, query, key, value, attend)]
    exact = [x.double() for x in (query, key, value)]
    expected = op.definition(*exact, attend)
    expected = [expected, *op.backward_definition(grad.double(), expected, *exact, attend)]
    assert_as_good_as_plain(actual, same_dtype, expected)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "heads", "queries", "pixels", "dim", "guided", "chunk"),
    [
        (1, 2, 19, 97, 32, 11, None),
        (2, 1, 13, 131, 32, 13, 64),
        (1, 1, 117, 67, 32, 100, 32),  # more rows than a block has
        (1, 1, 5, 61, 40, 3, 32),  # two slices, the second not full
        (1, 1, 3, 37, 8, 2, None),
        (1, 1, 1, 1, 32, 1, None),
    ],
)
def test_as_good_as_plain(run, dtype, batch, heads, queries, pixels, dim, guided, chunk):
    query, key, value = tensors(batch, heads, queries, pixels, dim, dtype)
    attend = torch.rand(batch, guided, pixels) < 0.2
    attend[:, 0] = False
    check(run, query, key, value, attend, chunk)


PATTERNS = {
    "none": lambda attend: attend.fill_(False),
    "all": lambda attend: attend.fill_(True),
    "one pixel": lambda attend: attend[:, :, 40].fill_(True),
    "one tile": lambda attend: attend[:, :, 32:64].fill_(True),
    "the ragged tail": lambda attend: attend[:, :, 96:].fill_(True),
    "the last pixel": lambda attend: attend[:, :, -1].fill_(True),
    "every third query, elsewhere": lambda attend: attend[:, ::3, 5:9].fill_(True),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("chunk", [None, 32])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(run, pattern, chunk):
    query, key, value = tensors(1, 2, 23, 101, 32, torch.float16)
    attend = torch.zeros(1, 17, 101, dtype=torch.bool)
    PATTERNS[pattern](attend)
    check(run, query, key, value, attend, chunk)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_without_guided_queries(run, dtype):
    query, key, value = tensors(1, 1, 5, 67, 32, dtype)
    check(run, query, key, value, torch.zeros(1, 0, 67, dtype=torch.bool))


@pytest.mark.parametrize("run", RUNS)
def test_memory_layouts(run):
    query, key, value = tensors(2, 2, 9, 70, 32, torch.float32)
    attend = (torch.rand(2, 70, 7) < 0.3).transpose(1, 2)
    expected = forward(run, query, key, value, attend)
    packed = [x.contiguous() for x in (query, key, value)]
    assert torch.equal(forward(run, *packed, attend.contiguous()), expected)


@pytest.mark.parametrize("run", RUNS)
def test_bits_and_bools_are_the_same(run):
    query, key, value = tensors(2, 1, 9, 70, 32, torch.float16)
    attend = torch.rand(2, 7, 70) < 0.1
    attend[:, :2] = False
    bits = pack_bits(attend)
    bits[:, :, -1] |= -64  # past the 70 pixels they mean nothing
    expected = forward(run, query, key, value, attend)
    assert torch.equal(forward(run, query, key, value, bits), expected)
    grad = torch.randn(2, 9, 1, 32).half().transpose(1, 2)
    actual = backward(run, grad, expected, query, key, value, bits)
    expected = backward(run, grad, expected, query, key, value, attend)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scores_that_rise_from_tile_to_tile(run, dtype):
    # The running reference has to follow by far more than its slack, more than once.
    query, key, value = tensors(1, 1, 17, 160, 32, dtype)
    query[..., 0], key[..., 0] = 8, torch.linspace(-40, 40, 160).to(dtype)
    attend = torch.ones(1, 17, 160, dtype=torch.bool)
    attend[:, 3, 32:] = False
    check(run, query, key, value, attend)


@pytest.mark.parametrize("run", RUNS)
def test_small_gradients_survive_half(run):
    query, key, value = tensors(1, 1, 5, 64, 32, torch.float16)
    attend = torch.ones(1, 5, 64, dtype=torch.bool)
    grad = torch.full(query.shape, 2.0**-13).half() * torch.randn(query.shape).sign().half()
    output = op.definition(query, key, value, attend)
    actual = backward(run, grad, output, query, key, value, attend)
    exact = [x.double() for x in (grad, output, query, key, value)]
    expected = op.backward_definition(*exact, attend)
    for one, other in zip(actual, expected, strict=True):
        # 2^-24 is the smallest half.
        assert (one.double() - other).abs().max() <= other.abs().max() * 2**-9 + 2**-24


@pytest.mark.parametrize("run", RUNS)
def test_nan_stays_in_its_row(run):
    query, key, value = tensors(1, 1, 5, 64, 32, torch.float32)
    query[:, :, 2, 7] = float("nan")
    output = forward(run, query, key, value, torch.ones(1, 5, 64, dtype=torch.bool))
    assert output.isnan().any(-1).squeeze().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("run", RUNS)
def test_an_empty_batch(run):
    query, key, value = tensors(0, 2, 5, 7, 32, torch.float32)
    attend = torch.zeros(0, 3, 7, dtype=torch.bool)
    output = forward(run, query, key, value, attend)
    assert output.shape == query.shape
    grads = backward(run, output, output, query, key, value, attend)
    assert [x.shape for x in grads] == [query.shape, key.shape, value.shape]


@needs_gpu
@pytest.mark.parametrize("dim", [1, 5, 33, 64, 100, 160])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_head_dimension(dim, dtype):
    query, key, value = tensors(2, 3, 7, 45, dim, dtype)
    check("cuda", query, key, value, torch.rand(2, 7, 45) < 0.5)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_models_shapes(dtype):
    query, key, value = tensors(1, 8, 108, 8640, 32, dtype)
    attend = torch.rand(1, 100, 8640) < torch.rand(1, 100, 1) ** 8
    check("cuda", query, key, value, attend)


@needs_gpu
def test_gradcheck():
    inputs = [x.cuda().requires_grad_() for x in tensors(2, 2, 5, 11, 4, torch.float64)]
    attend = (torch.rand(2, 3, 11) < 0.5).cuda()
    assert torch.autograd.gradcheck(lambda *x: op.masked_cross_attention(*x, attend), inputs)


@needs_emulator
@pytest.mark.parametrize("pixel", [0, 16389, 17006, None])
def test_the_emulated_survey_sees_any_pixel(pixel):
    # More pixels than the threads of a block take at once, be they bools or bits.
    attend = torch.zeros(1, 2, 17007, dtype=torch.bool)
    if pixel is not None:
        attend[0, 1, pixel] = True
    bits, guided = emulated_attention.survey(attend, 17007)
    assert torch.equal(bits, pack_bits(attend))
    assert guided.tolist() == [[0, pixel is not None]]
    bits[:, :, -1] |= -(2**15)  # past the pixels
    assert torch.equal(emulated_attention.survey(bits, 17007)[1], guided)


@needs_emulator
def test_the_emulator_would_notice():
    # A mask whose words are too few for the pixels: the kernel reads past them.
    query, key, value = tensors(1, 1, 3, 70, 32, torch.float32)
    with pytest.raises(emulated.EmulatedError, match="out of bounds"):
        forward("emulator", query, key, value, torch.full((1, 3, 2), -1, dtype=torch.int32))
