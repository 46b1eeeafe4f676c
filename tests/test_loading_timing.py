"""The measurement of loading: what it times is what training loads, beside the same views."""

import csv

import numpy as np
import pytest
import torch

from fastinst import loading_timing
from fastinst.data.augment import Augmentation
from fastinst.data.demo import write_demo
from fastinst.data.formats import load_dataset
from fastinst.data.loader import TrainingImages
from fastinst.ops import unpack_bits
from fastinst.rivals.mapper import STAGES


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data with spaces") / "demo"
    write_demo(folder, 3, 1, 0)
    return folder


@pytest.fixture
def images(data) -> TrainingImages:
    return TrainingImages(load_dataset(data, "train"), Augmentation.for_size(96, 128), seed=0)


def test_what_is_timed_is_the_sample(images):
    for key in ((0, 0), (1, 2)):
        *before, sample = loading_timing.staged_loading(images, key)
        assert len(before) + 1 == len(STAGES)
        expected = images[key]
        assert torch.equal(sample["image"], expected["image"])
        for name in ("labels", "masks"):
            assert torch.equal(sample["target"][name], expected["target"][name])
        assert sample["target"]["seed"] == expected["target"]["seed"]


def test_the_release_makes_the_same_views(images):
    for key in ((0, 0), (0, 1), (3, 2)):
        *before, theirs = loading_timing.staged_release(images, key)
        assert len(before) + 1 == len(STAGES)
        ours = images[key]
        assert theirs["image"].shape == ours["image"].shape
        width = ours["image"].shape[2]
        union = unpack_bits(ours["target"]["masks"], width).any(dim=0)
        their_union = theirs["target"]["masks"].any(dim=0)
        assert (union != their_union).float().mean() < 0.05


def test_rows():
    times = {"ours": [[1.0, 2, 3, 4]] * 3, "release": [[2.0, 4, 6, 8], [4.0, 8, 12, 16]]}
    rows = {(row["what"], row["stage"]): row for row in loading_timing.summarize(times)}
    assert rows["ours", "all"]["median_ms"] == rows["ours", "all"]["p95_ms"] == 10
    assert rows["ours", "all"]["images_per_second"] == pytest.approx(100)
    assert rows["release", "all"]["images_per_second"] == pytest.approx(2000 / 60)
    assert rows["release", STAGES[1]]["median_ms"] == 6
    assert rows["release", STAGES[1]]["p95_ms"] == pytest.approx(np.percentile([4, 8], 95))


def test_the_program(data, tmp_path, monkeypatch, capsys):
    file = tmp_path / "loading.csv"
    options = ["--size", "96", "--seconds", "0.05", "--workers", "1", "--csv", str(file)]
    threads = torch.get_num_threads()
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["loading_timing.py", str(data), *options])
        loading_timing.main()
    torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert "ratio: median " in text and "1 workers: " in text
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 2 * (2 * (len(STAGES) + 1) + 1)
    assert {row["what"] for row in rows} == {"ours", "release", "1 workers"}
    assert all(float(row["images_per_second"]) > 0 for row in rows)
