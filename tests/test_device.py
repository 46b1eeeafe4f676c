"""Choosing the device and the dtype."""

import warnings

import pytest
import torch

from fastinst import device as device_module
from fastinst.device import DTYPES, choose_device, choose_dtype, list_devices
from fastinst.errors import InputError

CPU = torch.device("cpu")


def test_devices(monkeypatch):
    assert choose_device("cpu") == choose_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    for name in ("cuda:99", "gpu", "mps:7", ""):
        with pytest.raises(InputError, match=f"^cannot use the device '{name}'; there is cpu"):
            choose_device(name)


def test_an_absent_device_is_answered_with_those_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert list_devices() == ["cpu", "cuda:0", "cuda:1"]
    with pytest.raises(InputError, match="there is cpu, cuda:0, cuda:1 "):
        choose_device("cuda:5")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert list_devices()[-1] == "mps"


def pretend(monkeypatch, avx512_bf16=False, amx=False, amx_fp16=False):
    for name, value in (
        ("_is_avx512_bf16_supported", avx512_bf16),
        ("_is_amx_tile_supported", amx),
        ("_is_amx_fp16_supported", amx_fp16),
    ):
        assert callable(getattr(torch.cpu, name))
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx": True}, torch.bfloat16),
        ({"amx": True, "amx_fp16": True}, torch.bfloat16),
    ],
)
def test_the_fastest_dtype_of_a_cpu(monkeypatch, has, expected):
    pretend(monkeypatch, **has)
    assert choose_dtype("auto", CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float32),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((9, 0), torch.float16),
    ],
)
def test_the_fastest_dtype_of_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda:0")
    assert choose_dtype("auto", gpu) == expected
    if capability == (7, 0):
        with pytest.warns(UserWarning, match="cuda:0 is not known to compute in bfloat16"):
            assert choose_dtype("bfloat16", gpu) == torch.bfloat16


def test_dtypes_by_name(monkeypatch):
    pretend(monkeypatch, avx512_bf16=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("float32", "bfloat16", "float64"):
            for spelling in (name, f"torch.{name}", DTYPES[name]):
                assert choose_dtype(spelling, CPU) == DTYPES[name]
    with pytest.warns(UserWarning, match="cpu is not known to compute in float16"):
        assert choose_dtype("float16", CPU) == torch.float16
    for name in ("int8", "half", torch.int64, ""):
        with pytest.raises(InputError, match="unknown dtype.*auto, float32, float16"):
            choose_dtype(name, CPU)


def test_apple_gpus_have_no_float64():
    mps = torch.device("mps")
    assert choose_dtype("auto", mps) == choose_dtype("float32", mps) == torch.float32
    with pytest.raises(InputError, match="mps cannot compute in float64"):
        choose_dtype("float64", mps)


def test_this_machine_has_an_answer():
    assert choose_dtype("auto", CPU) in device_module.DTYPES.values()
