"""What the tests of the CPU's kernels share."""

import os
import subprocess
import sys

import pytest
import torch

from fastinst import ops
from fastinst.ops.kernels import instruction_set

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def skip_unless_compiled(name):
    return pytest.mark.skipif(
        ops.active_kernels("cpu").get(name) != "compiled",
        reason="the CPU kernels are not built: make kernels",
    )


def make_heads(batch, heads, tokens, dim, dtype=torch.float64):
    """[B, H, N, D] as the model has it: a view of a projection [B, N, H * D]."""
    projected = torch.randn(batch, tokens, heads * dim, dtype=torch.float64).to(dtype)
    return projected.unflatten(2, (heads, dim)).transpose(1, 2)


def assert_token_major(tensor):
    assert tensor.transpose(1, 2).is_contiguous()


def assert_as_good(actual, plain, exact, size=0.0):
    """At most twice the error of plain PyTorch in the same dtype.

    Where that happens to be exact, and in float64, where it is the reference itself, some
    roundings are allowed: two orders of adding up hundreds of terms differ by as much. They are
    relative to the terms, of about `size` if that is more, of which a small sum may be left.
    """
    assert actual.shape == plain.shape and actual.dtype == plain.dtype
    assert not actual.isnan().any()
    if not actual.numel():
        return
    error, plain_error = ((x.double() - exact).abs().max() for x in (actual, plain))
    precision = torch.finfo(torch.promote_types(actual.dtype, torch.float32)).eps
    roundings = 32 if actual.dtype == torch.float64 else 1
    assert error <= 2 * plain_error + roundings * precision * max(size, exact.abs().max())


def assert_gradients_as_good(actual, plain, exact, grad, query, key, value):
    """Those of query and key are sums of differences of grad value^T, times key or query."""
    differences = (grad.double() @ value.double().mT).abs().max() / query.shape[3] ** 0.5
    sizes = [differences * x.double().abs().max() for x in (key, query)] + [1.0]
    for *gradients, size in zip(actual, plain, exact, sizes, strict=True):
        assert_token_major(gradients[0])
        assert_as_good(*gradients, size)


def assert_threads_do_not_matter(function):
    """`function` returns tensors, whose every bit must be the same on 1, 2 and 3 threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(function())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def run_lowered(name, file, tests):
    """Runs tests of a file again, in a process that has only a lesser instruction set."""
    if instruction_set() in ("baseline", name):
        pytest.skip(f"{instruction_set()} is what every other test here runs with")
    program = (
        "import sys, pytest; from fastinst.ops.kernels import instruction_set; "
        f"assert instruction_set() == {name!r}; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", file, "-k", tests]
    environment = os.environ | {"FASTINST_ISA": name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
