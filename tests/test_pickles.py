"""Files that are damaged, of another kind or dangerous are refused by name."""

import os
import pickle

import numpy as np
import pytest
import torch
from weight_files import RELEASED, assert_same, refuses, shorten_networks, small_model, snapshot

from fastinst import pickles
from fastinst.errors import InputError
from fastinst.weights import load_model, load_weights, read_checkpoint


@pytest.fixture(autouse=True)
def _short_networks(monkeypatch):
    shorten_networks(monkeypatch)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_damaged_files_are_input_errors(tmp_path, kind):
    model = small_model()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.layer")}
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    if kind == "pickle":
        good.write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}))
    else:
        torch.save(state, good, _use_new_zipfile_serialization=kind == "zip")
    assert pickles.read_file(good).keys() == state.keys()

    data, before = good.read_bytes(), snapshot(model)
    places = np.random.default_rng(0).integers(0, len(data), 30).tolist()
    for place in [*range(0, 80, 7), *places, len(data) - 1]:
        bad.write_bytes(data[:place])
        refuses(lambda: load_weights(model, bad), bad)
    for place in [*range(0, 600, 9), *places]:  # the start is all structure
        bad.write_bytes(data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :])
        with pytest.raises(InputError, match="bad.pt"):
            load_weights(model, bad)
    assert_same(model.state_dict(), before)


def test_flipped_bits_in_a_tensor_are_found(tmp_path):
    path = tmp_path / "flipped.pt"
    torch.save({"weight": torch.arange(4096.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(np.arange(100, 110, dtype=np.float32).tobytes())] ^= 1
    path.write_bytes(data)
    refuses(lambda: pickles.read_file(path), "flipped.pt", "checksum")


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, kind):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    content = {"model": {"weight": torch.ones(2).numpy()}, "trainer": Payload(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    refuses(lambda: load_weights(small_model(), path), path, "posix.system", "could run code")
    assert not trace.exists()
    pickle.loads(pickle.dumps(content))
    assert trace.exists()  # the payload works


class Dtype:
    """Pickles as NumPy's one float32, with a byte order and an alignment that it does not have."""

    def __reduce__(self):
        return np.dtype, ("f4", False, False), (3, ">", None, None, None, 3, 77, 255)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_files_cannot_change_numpy(tmp_path, kind):
    path = tmp_path / "dtype.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Dtype()))
    else:
        torch.save(Dtype(), path)
    refuses(lambda: load_model(path), path)
    float32 = np.dtype("float32")
    assert (float32.byteorder, float32.alignment, float32.flags) == ("=", 4, 0)


def test_damaged_pickle_cannot_ask_for_all_memory(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x03.")  # would need a table of 1 GB
    refuses(lambda: load_weights(small_model(), path), path, "entry 67108863")


def test_whole_objects_are_refused_by_name(tmp_path):
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "yolo.pt")
    refuses(lambda: load_model(tmp_path / "yolo.pt"), "yolo.pt", "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\n\n<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "git-lfs pull"),
        (b'{"images": []}', "a JSON file"),
        (b"\x20\0\0\0\0\0\0\0" + b'{"__metadata__":{"format":"pt"}}', "safetensors"),
        (b"Not Found", "starts with b'Not Found'"),
        (b"PK\x03\x04 and nothing more", "damaged"),
    ],
)
def test_other_files_are_named(tmp_path, content, word):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refuses(lambda: load_model(path), path, word.replace("git-lfs pull", "git lfs pull"))
    refuses(lambda: read_checkpoint(path), path)
    refuses(lambda: load_weights(small_model(), path), path)


def test_other_archives_and_objects_are_named(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    refuses(lambda: load_model(tmp_path / "arrays.npz"), "arrays.npz")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    refuses(lambda: load_model(tmp_path / "list.pt"), "list.pt", "a list")


def test_missing_files_and_folders(tmp_path):
    refuses(lambda: load_model(tmp_path / "no.pt"), "no.pt: no such file", RELEASED)
    refuses(lambda: load_model("fastinst-d9"), "fastinst-d9", RELEASED)
    refuses(lambda: load_model(tmp_path), tmp_path, "directory")
    refuses(lambda: read_checkpoint(tmp_path / "no.pt"), "no.pt", "No such file")
