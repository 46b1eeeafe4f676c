"""The release's weights: their names, and their download."""

import http.client
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from weight_files import (
    OFFICIAL_BIAS,
    RELEASED,
    assert_official,
    assert_same,
    official_state,
    refuses,
    shorten_networks,
    small_model,
    snapshot,
)

import fastinst
from fastinst import release
from fastinst.weights import load_model, load_weights


@pytest.fixture(autouse=True)
def _short_networks(monkeypatch):
    shorten_networks(monkeypatch)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("values", ["tensors", "arrays", "legacy", "pickle"])
def test_official_file(tmp_path, values):
    arrays = values in ("arrays", "pickle")
    state = official_state(num_classes=3)
    if arrays:
        state = {name: value.half().numpy() for name, value in state.items()}
    state = OrderedDict(state)
    constant = {"criterion.empty_weight": torch.ones(4).numpy()}
    content = {
        "model": state | constant,
        "trainer": {"iteration": 368749, "optimizer": {"state": {0: {"step": np.ones(1)}}}},
        "iteration": 368749,
        "best": np.float64(34.9),
        "name": np.str_("AP"),
    }
    path = tmp_path / "model_final.pth"
    if values == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=values != "legacy")
    model, meta = load_model(path)
    assert meta == (RELEASED, None, None, None)
    assert model.config.num_classes == 3
    assert_official(model)


def test_official_weights_of_80_classes_find_coco_s(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(official_state(num_classes=80), path)
    _, info = load_model(path)
    assert len(info.class_names) == len(info.category_ids) == 80
    assert (info.class_names[0], info.category_ids[0]) == ("person", 1)
    assert (info.class_names[-1], info.category_ids[-1]) == ("toothbrush", 90)


def test_official_file_with_other_classes_or_of_another_model(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(official_state(), path)  # bare
    model = fastinst.create_model(RELEASED, 2, hidden_dim=256)
    kept = load_weights(model, path)
    assert len(kept) == 6 and all("class" in name for name in kept)
    assert_official(model, kept)

    before = snapshot(model)
    torch.save({"model": official_state("fastinst-d3-r50d-dcn-640")}, path)
    of = "fastinst-d3-r50d-dcn-640 with 80 classes, not of fastinst-d1-r50-576 with 2"
    refuses(lambda: load_weights(model, path), path, of, "missing", "unexpected")
    refuses(lambda: load_weights(small_model(), path), path, "fastinst-d3-r50d-dcn-640")

    state = official_state()
    del state[OFFICIAL_BIAS]
    torch.save(state, path)
    refuses(lambda: load_weights(model, path), "an unknown one", OFFICIAL_BIAS)
    refuses(lambda: load_model(path), "does not say which model")
    assert_same(model.state_dict(), before)


def test_download_happens_once(tmp_path, hub, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    file = served / release.RELEASE_FILES[RELEASED]
    torch.save({"model": official_state()}, file)
    monkeypatch.setattr(release, "RELEASE_URL", served.as_uri() + "/")
    model, meta = load_model(RELEASED)
    assert_official(model)
    assert meta.name == RELEASED and model.config.num_classes == 80
    assert (hub / file.name).read_bytes() == file.read_bytes()
    file.unlink()
    assert load_weights(model, RELEASED, progress=False) == []
    assert os.listdir(hub) == [file.name]


class Response:
    """Some bytes, then an error or the end."""

    def __init__(self, pieces, total=None):
        self.pieces = iter(pieces)
        self.headers = {} if total is None else {"Content-Length": str(total)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, _):
        piece = next(self.pieces, b"")
        if isinstance(piece, BaseException):
            raise piece
        return piece


START = b"PK\x03\x04" + bytes(96)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (OSError("Name or service not known"), "not known"),
        (Response([START, ConnectionResetError("reset by peer")], 1000), "reset by peer"),
        (Response([START, http.client.IncompleteRead(b"", 900)], 1000), "IncompleteRead"),
        (Response([START], 1000), "after 100 of 1000 bytes"),
        (Response([b"<html>Please log in to this Wi-Fi</html>"]), "an HTML page"),
        (Response([]), "after 0"),
    ],
)
def test_failed_downloads_say_what_to_do_and_leave_nothing(hub, monkeypatch, answer, word):
    def urlopen(url, timeout):
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    name = release.RELEASE_FILES[RELEASED]
    model = small_model()
    refuses(lambda: load_weights(model, RELEASED), release.RELEASE_URL + name, hub / name, word)
    assert os.listdir(hub) == []


def test_interrupted_download_leaves_nothing(hub, monkeypatch):
    response = Response([START, KeyboardInterrupt()])
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: response)
    with pytest.raises(KeyboardInterrupt):
        load_model(RELEASED)
    assert os.listdir(hub) == []


def test_hub_folder_that_cannot_be_written(hub):
    hub.parent.write_text("a file where the folder should be")
    refuses(lambda: load_model(RELEASED), hub)


def test_our_small_model_has_no_published_weights(hub):
    refuses(lambda: load_model("fastinst-d1-r18-192"), "no published weights", RELEASED)
