"""Reading files of tensors and arrays by their content, without running code from them."""

import codecs
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from fastinst.errors import InputError

_ZIP = b"PK\x03\x04"  # torch.save since PyTorch 1.6
_PICKLE = b"\x80"
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # near the start of older torch.save

_FOREIGN = [
    (b"<", "an HTML page: the download went wrong"),
    (b"version https://git-lfs", "a pointer of git-lfs: fetch the file itself with `git lfs pull`"),
    (b"{", "a JSON file"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
]


class _Dtype:
    """Stands for numpy.dtype, whose own __setstate__ a hostile file can make corrupt memory."""

    def __init__(self, code: str, *_: Any):
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that takes only a state that fits."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        array = _from_buffer(data, dtype, shape, "F" if fortran else "C")
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))


def _from_buffer(data, dtype: _Dtype, shape, order, axes=None) -> np.ndarray:
    if isinstance(data, str):  # the bytes of Python 2
        data = data.encode("latin1")
    array = np.frombuffer(data, dtype.value)
    if axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes | str) -> np.generic:
    return _from_buffer(data, dtype, (), "C")[()]


# What the pickles of arrays call for, before and since NumPy 2.
_NUMPY = {"numpy.ndarray": _Array, "numpy.dtype": _Dtype}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY[f"{_core}.multiarray._reconstruct"] = lambda *_: _Array(0)
    _NUMPY[f"{_core}.multiarray.scalar"] = _scalar
    _NUMPY[f"{_core}.numeric._frombuffer"] = _from_buffer
_SAFE = _NUMPY | {"collections.OrderedDict": OrderedDict, "_codecs.encode": codecs.encode}


def read_file(path: Path | str) -> Any:
    """The object in a file of torch.save, of any age, or in a pickle.

    Tensors come on the CPU. Only tensors, NumPy arrays and plain Python values are made: nothing
    in the file is run.

    Raises:
        InputError: the file cannot be read, is damaged, is of another kind, or needs any other
            Python object; names the file and what it is.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if problem := foreign(head):
                raise InputError(f"{path} is {problem}")
            if head.startswith(_ZIP):
                _check_zip(path)
            elif _LEGACY not in head:
                _check_pickle(file)
                return _Unpickler(file, encoding="latin1").load()
        with torch.serialization.safe_globals([(made, name) for name, made in _NUMPY.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        _refuse(path, error)


def foreign(head: bytes) -> str | None:
    """What a file that starts with `head` is, or None if torch.save or pickle may have written it.

    Args:
        head: the file's first 64 bytes or more
    """
    if not head:
        return "empty"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return (
            "a safetensors file, which is not supported: "
            "torch.save(safetensors.torch.load_file(...), ...) makes one that is"
        )
    for start, kind in _FOREIGN:
        if head.lstrip().startswith(start):
            return kind
    if head.startswith((_ZIP, _PICKLE)):
        return None
    return f"no file of torch.save and no pickle; it starts with {head[:16]!r}"


def find_tensors(path: Path | str, content: Any) -> dict[str, Tensor]:
    """The state dict in what `read_file` returned: itself, or under "model" or Caffe2's "blobs".

    Arrays become tensors. `criterion.empty_weight`, a constant of the release's losses, is passed
    over.

    Raises:
        InputError: there is none, or a value in it is not a plain dense tensor.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no weights but a {type(content).__name__}")
    for key in ("model", "blobs"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {}
    for name, value in content.items():
        if str(name).endswith("criterion.empty_weight"):
            continue
        try:
            tensors[str(name)] = _as_tensor(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} holds no weights: {name!r} is not a plain tensor") from error
    if not tensors:
        raise InputError(f"{path} holds no weights: it is empty")
    return tensors


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, np.ndarray | np.generic):
        value = torch.tensor(value)
    # Copying from any other kind could fail when half of a model is done.
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        raise TypeError
    if value.is_meta or value.is_quantized or value.is_complex():
        raise TypeError
    return value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _SAFE[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}") from None


def _check_pickle(file: BinaryIO) -> None:
    """Raises if a damaged number would make pickle ask for memory without end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    for operation, argument, _ in pickletools.genops(file):  # lengths it checks itself
        if operation.name.endswith("PUT") and int(argument) > size:
            raise pickle.UnpicklingError(f"entry {argument} in a file of {size} bytes")
    file.seek(0)


def _check_zip(path: Path | str) -> None:
    """Raises if the archive is damaged; torch.load does not look at its checksums."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} does not fit its checksum")


def _refuse(path: Path | str, error: Exception) -> NoReturn:
    # PyTorch, as the unpickler here, names the object only in its message.
    if isinstance(error, pickle.UnpicklingError) and (
        found := re.search(r"GLOBAL (\S+)", str(error))
    ):
        raise InputError(
            f"{path} holds more than tensors: {found[1]}, which could run code, so it is not "
            f"opened. If you trust the file, load it with the program that wrote it and torch.save "
            f"its state dict"
        ) from error
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise InputError(f"{path} is damaged, cut short or no file of weights ({reason})") from error
