"""Checkpoints, the release's files and ImageNet backbones: what loads, and what must not."""

import dataclasses
import http.client
import os
import pickle
import resource
import signal
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm2d

import fastinst
from fastinst import backbone, pickles, release
from fastinst.backbone import Architecture, BasicBlock, Bottleneck
from fastinst.errors import InputError
from fastinst.official import official_names
from fastinst.weights import (
    CheckpointInfo,
    load_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)

SMALL = {"hidden_dim": 64, "ffn_dim": 32, "num_queries": 10, "num_points": 16}
RELEASED = "fastinst-d1-r50-576"
OFFICIAL_BIAS = "sem_seg_head.predictor.query_proposal.conv_proposal_cls_logits.2.bias"


def small_model(num_classes=3, **options):
    return fastinst.create_model("fastinst-d1-r18-192", num_classes, **SMALL | options)


@pytest.fixture(autouse=True)
def short_networks(monkeypatch):
    """One block a stage, so that the files of these tests are small."""
    deformable = (False, False, True, True)
    for name, architecture in {
        "resnet18": Architecture(BasicBlock, (1, 1, 1, 1)),
        "resnet50": Architecture(Bottleneck, (1, 1, 1, 1)),
        "resnet50d-dcn": Architecture(Bottleneck, (1, 1, 1, 1), True, deformable),
    }.items():
        monkeypatch.setitem(backbone.ARCHITECTURES, name, architecture)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


def refuses(action, *words):
    """The action raises one InputError, on one line, that has all the words."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message


def official_state(name=RELEASED, num_classes=80):
    """The release's names; each tensor has a number of its own and takes no room."""
    with torch.device("meta"):
        model = fastinst.create_model(name, num_classes)
    shapes = model.state_dict()
    return {
        official: torch.tensor(i + 0.5).expand(shapes[ours].shape)
        for i, (ours, official) in enumerate(official_names(model).items())
    }


def assert_official(model, kept=()):
    for i, ours in enumerate(official_names(model)):
        assert (model.state_dict()[ours] == i + 0.5).all() == (ours not in kept), ours


# Checkpoints of our own.


def test_checkpoint_round_trip_is_exact(tmp_path):
    model = small_model()
    model.backbone.bn1.num_batches_tracked += 7
    training = {"step": 5, "optimizer": {"exp_avg": torch.rand(3)}, "rng": torch.get_rng_state()}
    path = tmp_path / "last.pt"
    save_checkpoint(path, model, ["a", "b", "c"], [1, 5, 9], training)

    checkpoint = read_checkpoint(path)
    assert checkpoint["format"] == "fastinst/1"
    assert checkpoint["config"] == dataclasses.asdict(model.config)
    assert checkpoint["training"]["step"] == 5
    assert_same(checkpoint["training"]["optimizer"], training["optimizer"])

    other = small_model()
    assert load_weights(other, path) == []
    assert_same(other.state_dict(), model.state_dict())

    restored, meta = load_model(path)
    assert_same(restored.state_dict(), model.state_dict())
    assert restored.config == model.config and not restored.training
    assert meta == CheckpointInfo("fastinst-d1-r18-192", ("a", "b", "c"), (1, 5, 9))


def test_bare_state_dicts_load_into_a_model_but_do_not_make_one(tmp_path):
    model, other = small_model(), small_model()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert load_weights(other, tmp_path / "state.pt") == []
    assert_same(other.state_dict(), model.state_dict())
    refuses(lambda: load_model(tmp_path / "state.pt"), "state.pt", "create_model")


def test_values_take_the_models_dtype_and_batch_norms_may_be_frozen_or_not(tmp_path):
    trainable, frozen = small_model().double(), small_model(frozen_batch_norm=True)
    torch.save(trainable.state_dict(), tmp_path / "trainable.pt")
    torch.save(frozen.state_dict(), tmp_path / "frozen.pt")
    load_weights(frozen, tmp_path / "trainable.pt")
    for name, value in frozen.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, trainable.state_dict()[name].float())
    load_weights(trainable, tmp_path / "frozen.pt")


def test_other_number_of_classes_keeps_the_class_layers(tmp_path):
    save_checkpoint(tmp_path / "three.pt", small_model(3), list("abc"), [1, 2, 3])
    model = small_model(5)
    before, saved = snapshot(model), read_checkpoint(tmp_path / "three.pt")["model"]
    kept = load_weights(model, tmp_path / "three.pt")
    layers = ["queries.classifier", *(f"decoder.heads.{i}.class_mlp.layers.2" for i in (0, 1))]
    assert kept == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in kept else saved[name]), name


def test_checkpoints_of_other_models_change_nothing(tmp_path):
    path = tmp_path / "wide.pt"
    save_checkpoint(path, small_model(ffn_dim=64), None, None)
    model = small_model()
    before = snapshot(model)
    name = "fastinst-d1-r18-192 with 3 classes"
    refuses(
        lambda: load_weights(model, path), path, "another model", name, "ffn_dim=64", "[64, 32]"
    )

    save_checkpoint(path, fastinst.create_model(RELEASED, 3, **SMALL), None, None)
    refuses(lambda: load_weights(model, path), path, f"{RELEASED} with 3 classes", "unexpected")

    state = dict(model.state_dict())
    state["extra"], state["positions.weight"] = torch.ones(1), torch.ones(1, 64, 9, 10)
    del state["backbone.conv1.weight"]
    torch.save(state, path)
    refuses(
        lambda: load_weights(model, path),
        "an unknown one",
        "missing (1): backbone.conv1.weight",
        "unexpected (1): extra",
        "wrong shape (1): positions.weight [1, 64, 9, 10], not [1, 64, 10, 10]",
    )
    for exotic in (torch.ones(1).to_sparse(), torch.ones(1, dtype=torch.complex64), "text"):
        torch.save({**model.state_dict(), "positions.weight": exotic}, path)
        refuses(lambda: load_weights(model, path), "positions.weight", "not a plain tensor")
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "fastinst/2"}, ["fastinst/2", "another version"]),
        ({"config": {"name": "x", "warp": 1}}, ["does not know: warp"]),
        ({"config": {"name": "x"}}, ["missing"]),
        ({"config": None}, ["'config'"]),
        ({"class_names": ["a"]}, ["'class_names'", "3 classes"]),
        ({"category_ids": ["1", "2", "3"]}, ["'category_ids'"]),
        ({"model": {}}, ["empty"]),
    ],
)
def test_checkpoints_that_do_not_make_sense(tmp_path, change, words):
    path = tmp_path / "changed.pt"
    save_checkpoint(path, small_model(), None, None)
    torch.save(read_checkpoint(path) | change, path)
    refuses(lambda: load_model(path), path, *words)


def test_read_checkpoint_wants_our_own(tmp_path):
    torch.save({"model": official_state()}, tmp_path / "official.pth")
    refuses(lambda: read_checkpoint(tmp_path / "official.pth"), "official.pth", "not a checkpoint")


def test_failed_saves_leave_the_old_checkpoint(tmp_path):
    model, path = small_model(), tmp_path / "last.pt"
    save_checkpoint(path, model, None, None, {"step": 1})
    refuses(lambda: save_checkpoint(tmp_path / "no" / "a.pt", model, None, None), "no/a.pt")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk
    try:
        refuses(lambda: save_checkpoint(path, model, None, None, {"step": 2}), path, "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(AttributeError):
        save_checkpoint(path, model, None, None, {"step": lambda: 3})
    assert read_checkpoint(path)["training"] == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


# Files that are damaged, dangerous or something else.


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


# The release.


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
    assert meta == (RELEASED, None, None)
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


# ImageNet backbones.


def with_backbone(architecture, frozen=True):
    model = small_model(backbone=architecture, frozen_batch_norm=frozen)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def imagenet(architecture):
    """A state dict with torchvision's and timm's names, out of our own."""
    state = {}
    for name, value in with_backbone(architecture, frozen=False).backbone.state_dict().items():
        if ".offset." not in name:
            state[name] = value
    return state | {"fc.weight": torch.ones(1000, 8), "fc.bias": torch.ones(1000)}


def to_detectron2(state):
    """What detectron2's convert-torchvision-to-d2.py makes of torchvision's names."""
    converted = {}
    for name, value in state.items():
        name = name if "layer" in name else f"stem.{name}"
        for i in (1, 2, 3, 4):
            name = name.replace(f"layer{i}", f"res{i + 1}").replace(f"bn{i}", f"conv{i}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        converted[name] = value.numpy()
    return {"model": converted, "__author__": "torchvision", "matching_heuristics": True}


def assert_backbone(model, expected):
    for name, value in model.backbone.state_dict().items():
        if ".offset." in name:
            assert not value.any(), name
        elif name in expected and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, expected[name]), name
        else:
            assert name.endswith("num_batches_tracked"), name


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "resnet50d-dcn"])
def test_torchvision_and_timm_backbones(tmp_path, architecture, frozen):
    path, state = tmp_path / "weights", imagenet(architecture)
    if architecture == "resnet50":  # torchvision's first files are that old
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, path, _use_new_zipfile_serialization=architecture != "resnet50")
    model = with_backbone(architecture, frozen)
    others = {k: v for k, v in snapshot(model).items() if not k.startswith("backbone.")}
    kept = load_weights(model, path)
    assert_backbone(model, state)
    offsets = {k for k in model.state_dict() if "conv2.offset" in k}
    assert set(kept) == {k for k in others if "num_batches" not in k} | offsets
    assert others.items() and all(torch.equal(model.state_dict()[k], v) for k, v in others.items())
    assert isinstance(model.backbone.bn1, BatchNorm2d) != frozen


@pytest.mark.parametrize(("frozen", "protocol"), [(True, 2), (False, 4), (True, 5)])
def test_detectron2_backbone(tmp_path, frozen, protocol):
    path, state = tmp_path / "R-50.pkl", imagenet("resnet50")
    path.write_bytes(pickle.dumps(to_detectron2(state), protocol))
    model = with_backbone("resnet50", frozen)
    load_weights(model, path)
    assert_backbone(model, state)


def test_backbones_of_another_network_change_nothing(tmp_path):
    path, model = tmp_path / "weights", with_backbone("resnet50")
    before = snapshot(model)
    torch.save(imagenet("resnet18"), path)
    refuses(lambda: load_weights(model, path), path, "no resnet50", "missing", "wrong shape")
    torch.save({**imagenet("resnet50"), "layer5.weight": torch.ones(1)}, path)
    refuses(lambda: load_weights(model, path), "unexpected (1): layer5.weight")
    path.write_bytes(pickle.dumps(to_detectron2(imagenet("resnet50"))))
    refuses(lambda: load_weights(with_backbone("resnet50d-dcn"), path), "resnet50d-dcn")
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x}, lambda x: {"blobs": x}])
def test_caffe_backbones_are_explained(tmp_path, wrap):
    names = ["conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w", "res2_0_branch2a_bn_b", "fc1000_w"]
    content = wrap({name: np.ones(4, np.float32) for name in names})
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    message = refuses(lambda: load_weights(with_backbone("resnet50"), path), path, "MSRA", "BGR")
    assert "torchvision/R-50.pkl" in message
