"""The emulator computes what CUDA does, and finds every kind of bug that it claims to find.

The kernels are in cuda_emulator/examples.h.
"""

import emulated
import pytest
import torch
from emulated import EmulatedError

pytestmark = emulated.needs_emulator

SCALARS = {name: dtype for dtype, name in emulated.SCALARS.items()}
ORDERS = ("kRowMajor", "kColumnMajor")


def tile_product(scalar, order_a, order_b):
    return f"tile_product_{scalar}_{order_a}_{order_b}"


@pytest.fixture(scope="module")
def kernels():
    products = "".join(
        f"EMULATED({tile_product(scalar, a, b)}, "
        f"fastinst::tile_product<{scalar}, fastinst::Order::{a}, fastinst::Order::{b}>)\n"
        for scalar in SCALARS
        for a in ORDERS
        for b in ORDERS
    )
    return emulated.build(f'#include "examples.h"\n{products}')


def test_16_bit_types_round_as_torch_does(kernels):
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    wide = torch.cat([torch.randn(5000) * scale for scale in (1e-8, 1e-5, 1e-2, 1, 1e4, 1e38)])
    ties = (torch.randint(-(2**31), 2**31, (5000,)) & 0xFFFF8000).to(torch.int32)
    wide = torch.cat([wide, ties.view(torch.float32)])
    wide = wide[~wide.isnan()].contiguous()
    for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        narrow = torch.empty(len(wide), dtype=dtype)
        getattr(kernels, f"{name}_from_float")(wide, narrow, len(wide))
        assert torch.equal(narrow.view(torch.int16), wide.to(dtype).view(torch.int16))
        values = every.view(dtype)
        widened = torch.empty(len(values))
        getattr(kernels, f"float_from_{name}")(values, widened, len(values))
        torch.testing.assert_close(widened, values.float(), rtol=0, atol=0, equal_nan=True)


def test_doubles_round_once(kernels):
    # Just above half way between two neighbours, by less than a float can tell.
    for name, dtype, step in (
        ("half", torch.float16, 2**-10),
        ("bfloat16", torch.bfloat16, 2**-7),
    ):
        tie = 1 + step / 2
        values = torch.tensor([tie + 1e-12, -tie - 1e-12, tie], dtype=torch.float64)
        narrow = torch.empty(3, dtype=dtype)
        getattr(kernels, f"{name}_from_double")(values, narrow, 3)
        assert narrow.tolist() == [1 + step, -1 - step, 1]


def test_block_reduction(kernels):
    values, sums = torch.randn(192), torch.empty(192)
    kernels.block_sum(values, sums)
    assert (sums == sums[0]).all()
    torch.testing.assert_close(sums[0], values.sum())


def test_warp_operations(kernels):
    values = torch.randint(-9, 9, (64,), dtype=torch.int32)
    result = torch.empty(64, 8, dtype=torch.int32)
    kernels.warp_operations(values, result)
    for i in range(64):
        warp, lane = i // 32 * 32, i % 32
        positive = values[warp : warp + 32] > 0
        ballot = sum(1 << j for j in range(32) if positive[j])
        expected = [
            values[warp + lane // 16 * 16 + (i + 5) % 16],
            values[warp + (lane ^ 7)],
            values[i - 3] if lane >= 3 else values[i],
            values[i + 3] if lane % 8 < 5 else values[i],
            ballot - (1 << 32) if ballot >= 1 << 31 else ballot,
            *(0, 1, (values > 0).sum()),
        ]
        assert result[i].tolist() == [int(value) for value in expected]


def test_blocks_and_atomics(kernels):
    values = torch.rand(1000) * 100
    histogram, largest = torch.zeros(8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    total = torch.zeros(1)
    kernels.blocks_and_atomics(histogram, largest, total, values, 1000, rounding=1e-5)
    assert torch.equal(histogram, (values.long() % 8).bincount(minlength=8).int())
    assert largest == values.max().int()
    torch.testing.assert_close(total[0], values.sum())


def test_the_order_of_a_float_sum_must_be_allowed_for(kernels):
    counts = torch.zeros(8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(EmulatedError, match="argument 2 differently"):
        kernels.blocks_and_atomics(*counts, torch.zeros(1), torch.rand(1000) * 100, 1000)


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("order_a", ORDERS)
@pytest.mark.parametrize("order_b", ORDERS)
def test_tile_product(kernels, scalar, order_a, order_b):
    dtype = SCALARS[scalar]
    a, b = torch.randn(32, 64).to(dtype), torch.randn(64, 48).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    c = torch.empty(32, 48, dtype=wide)
    getattr(kernels, tile_product(scalar, order_a, order_b))(a, b, c)
    exact = 3 * (a.double() @ b.double())
    plain = 3 * (a.to(wide) @ b.to(wide))
    # Sums of 64 in another order than torch's: their rounding differs by a few units.
    floor = 64 * torch.finfo(wide).eps
    assert (c - exact).abs().max() <= 2 * (plain - exact).abs().max() + floor


def test_asynchronous_copies_arrive_when_waited_for(kernels):
    values, result = torch.randn(128), torch.empty(32)
    kernels.async_copy(values, result, True)
    assert torch.equal(result, values[:32])
    with pytest.raises(EmulatedError, match="differently"):
        kernels.async_copy(values, result, False)


def test_views_keep_their_strides(kernels):
    whole = torch.zeros(192, 3)
    values = torch.randn(192)
    kernels.block_sum(values, whole[:64].view(-1))
    assert torch.equal(whole[64:], torch.zeros(128, 3))
    assert (whole[:64] == whole[0, 0]).all() and whole[0, 0] != 0


def test_a_tensor_that_is_too_small_is_found(kernels):
    with pytest.raises(EmulatedError, match=r"examples\.h:\d+"):
        kernels.block_sum(torch.randn(192), torch.empty(100))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("barrier_missed", r"wait for each other[^!]*at __syncthreads[^!]*has returned"),
        ("barriers_differ", "meet at different __syncthreads"),
        ("lane_missing", "wait for each other[^!]*__shfl_xor_sync with mask ffffffff"),
        ("lane_outside_mask", "reads a lane that is not in its mask"),
        ("missing_barrier_at_loop_end", "argument 0 differently"),
        ("missing_syncwarp", "argument 0 differently"),
        ("out_of_shared", "out of bounds"),
        ("misaligned", "undefined behaviour"),
    ],
)
def test_finds(kernels, kernel, message):
    with pytest.raises(EmulatedError, match=message):
        getattr(kernels, kernel)(torch.empty(192))


def test_finds_a_missing_barrier(kernels):
    with pytest.raises(EmulatedError, match="differently"):
        kernels.missing_barrier(torch.randn(64), torch.empty(64))


@pytest.mark.parametrize("dynamic", [False, True])
def test_finds_uninitialised_shared_memory(kernels, dynamic):
    with pytest.raises(EmulatedError, match="differently"):
        kernels.uninitialised_shared(torch.empty(32), dynamic)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("index", [-1, 48, 1000])
def test_finds_accesses_out_of_bounds(kernels, index, write):
    position = f"byte {4 * index} of tensor argument 0, which has 192|outside of tensor argument 0"
    with pytest.raises(EmulatedError, match=position):
        kernels.out_of_bounds(torch.zeros(48), index, write)


def test_finds_writes_into_the_rest_of_16_bytes(kernels):
    with pytest.raises(EmulatedError, match="outside of tensor argument 0"):
        kernels.out_of_bounds(torch.zeros(47), 47, True)


def test_finds_code_that_relies_on_the_layout_of_fragments(kernels):
    matrix, elements = torch.arange(256).to(torch.float16), torch.empty(256)
    kernels.depends_on_fragment_layout(matrix, elements)
    assert (elements.sort().values == matrix).all()
    assert (elements == matrix).float().mean() < 0.1
    with pytest.raises(EmulatedError, match="multiple of 32 bytes"):
        kernels.unaligned_fragment(matrix)


@pytest.mark.parametrize(("threads", "shared_bytes"), [(1025, 0), (0, 0), (32, 228 << 10)])
def test_refuses_launches_that_no_device_runs(kernels, threads, shared_bytes):
    with pytest.raises(EmulatedError, match="invalid"):
        kernels.launch_with(threads, shared_bytes)


def test_large_shared_memory_is_asked_for(kernels):
    kernels.launch_with(32, 227 << 10)


def test_arguments_are_checked(kernels):
    with pytest.raises(EmulatedError, match="takes arguments ppi, got ppf"):
        kernels.half_from_float(torch.zeros(1), torch.zeros(1).half(), 1.0)
