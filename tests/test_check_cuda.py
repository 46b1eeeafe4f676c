"""How scripts/check_cuda.py reads ptxas' report."""

import importlib.util
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "check_cuda.py"
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8fastinst5scaleIfLb1EEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _ZN8fastinst5scaleIfLb1EEEvPKT_
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 3.2 ms
ptxas info    : Compiling entry function '_ZN8fastinst4copyIdEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN8fastinst4copyIdEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 360 bytes cmem[0]
"""


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_cuda", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not shutil.which("c++filt"), reason="needs c++filt")
def test_report(check):
    assert check.resources(REPORT) == [
        ("scale<float, true>", "sm_80", 128, 4096, 16, 32),
        ("copy<double>", "sm_80", 24, 0, 0, 0),
    ]


def test_who_may_spill(check):
    assert check.may_spill("copy<double, 32>", "sm_90")
    assert check.may_spill("copy<__nv_bfloat16, 32>", "sm_70")
    assert not check.may_spill("copy<__nv_bfloat16, 32>", "sm_80")
    assert not check.may_spill("copy<float, 32>", "sm_70")


def test_a_compiler_that_fails_is_quoted(check):
    with pytest.raises(check.CompileError, match="no such thing"):
        check.checked(["sh", "-c", "echo no such thing >&2; exit 3"])
