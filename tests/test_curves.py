"""The pictures of runs: from any log that a run can leave."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fastinst import curves
from fastinst.curves import compare_curves, draw_curves
from fastinst.errors import InputError
from fastinst.training.log import Log


def write_log(folder, rows, **constant):
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder, say=lambda line: None)
    for step, row in enumerate(rows, start=1):
        log.write({"step": step, "epoch": step / 40, "lr": 1e-4} | constant | row)
    log.close()
    return folder / "log.csv"


def losses(total):
    parts = {"loss_ce": 0.2, "loss_mask": 0.1, "loss_dice": 0.6, "loss_proposal": 0.1}
    return {"loss": total} | {name: share * total for name, share in parts.items()}


def width(path):
    with Image.open(path) as picture:
        return picture.width


@pytest.fixture
def panels(monkeypatch):
    """The panels of the pictures that are drawn, by their titles."""
    drawn = {}
    draw = curves.draw_panels

    def spy(panels, title, x_label):
        drawn.clear()
        drawn.update({panel.title: panel for panel in panels}, title=title, x_label=x_label)
        return draw(panels, title, x_label)

    monkeypatch.setattr(curves, "draw_panels", spy)
    return drawn


def test_a_run_s_picture(tmp_path, panels):
    rows = [losses(20 / step) for step in range(1, 201)]
    rows[99] |= {"AP": 12.5, "AP50": 30.25}
    rows[199] |= {"AP": 11.0, "AP50": 33.0}
    path = write_log(tmp_path / "my run", rows)
    draw_curves(path, tmp_path / "my run" / "curves.png")
    with Image.open(tmp_path / "my run" / "curves.png") as picture:
        assert picture.format == "PNG" and picture.mode == "RGB" and picture.width == 1200
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50
    assert (panels["title"], panels["x_label"]) == ("my run", "step (an epoch is 40)")
    labels = [line.label for line in panels["loss"].lines if line.label]
    assert labels == ["total", "ce", "mask", "dice", "proposal"] and panels["loss"].log
    first, second = panels["mask AP"].lines
    assert first.label == "AP, best 12.5 at step 100" and list(first.x) == [100, 200]
    assert second.label == "AP50, best 33.0 at step 200" and list(second.y) == [30.25, 33]
    assert [line.label for line in panels["learning rate"].lines] == ["highest 0.0001"]


def test_each_measure_has_its_panel(tmp_path, panels):
    by_ap = write_log(tmp_path / "ap", [losses(5.0) | {"AP": 3.0}])
    by_pq = write_log(tmp_path / "pq", [losses(5.0) | {"AP": 20.0, "AP50": 60.0}])
    by_pq.write_text(by_pq.read_text().replace("AP,AP50", "PQ,accuracy"))
    draw_curves(by_pq, tmp_path / "one.png")
    assert [line.label for line in panels["PQ"].lines] == ["PQ, best 20.0 at step 1"]
    assert list(panels["mIoU"].lines[0].y) == [60] and "mask AP" not in panels
    compare_curves([by_ap, by_pq], tmp_path / "two.png")
    assert panels["mask AP"].lines[0].label == "ap, best 3.0 at step 1"
    assert panels["PQ"].lines[0].label == "pq, best 20.0 at step 1"
    assert "mIoU" not in panels  # of several runs only what chooses their best models is drawn


def test_axes_are_logarithmic_only_where_it_takes_one(tmp_path, panels):
    draw_curves(write_log(tmp_path, [losses(20.0)] * 5), tmp_path / "a.png")
    assert not panels["loss"].log and panels["loss"].limits[0] == 0
    draw_curves(write_log(tmp_path, [losses(20.0)] * 99 + [losses(0.0)] * 99), tmp_path / "a.png")
    assert not panels["loss"].log


@pytest.mark.parametrize(
    "rows",
    [
        [losses(9.0)],
        [losses(math.nan)],
        [losses(math.inf), losses(3.0), losses(-math.inf)],
        [{}],
        [losses(0.0), losses(0.0)],
        [losses(3.0) | {"lr": 0.0}, losses(4.0) | {"lr": 0.0}],
        [losses(3.0) | {"AP": 0.0, "AP50": 0.0}, losses(2.0) | {"AP": math.nan}],
        [losses(3.0) | {"AP": -1.0, "AP50": -1.0}],
        [losses(-2.0), losses(1e30)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_log_has_a_picture(tmp_path, rows):
    path = write_log(tmp_path / "run", rows)
    draw_curves(path, tmp_path / "one.png")
    compare_curves([path, path], tmp_path / "two.png")
    assert width(tmp_path / "one.png") == width(tmp_path / "two.png") == 1200


def test_what_the_smooth_line_is():
    x = np.arange(1.0, 1001)
    np.testing.assert_allclose(curves._smoothed(x, np.full(1000, 7.0))[1], 7.0)
    noisy = np.where(np.arange(1000) % 2, 8.0, 6.0)
    assert np.abs(curves._smoothed(x, noisy)[1] - 7).max() < 0.1
    noisy[[10, 500]] = math.nan, math.inf
    assert np.abs(curves._smoothed(x, noisy)[1] - 7).max() < 0.2
    # Against the definition.
    y = np.random.default_rng(0).normal(size=300)
    expected = [
        np.average(y, weights=np.exp(-0.5 * ((np.arange(300) - i) / 3.0) ** 2)) for i in range(300)
    ]
    steps, smooth = curves._smoothed(np.arange(300.0), y)
    np.testing.assert_allclose(smooth, expected, atol=1e-3)
    assert list(steps) == list(range(300))


def test_long_runs_keep_their_extremes_and_take_seconds(tmp_path):
    x, y = np.arange(100_001.0), np.full(100_001, 5.0)
    y[[12_345, 100_000]] = 50, -3
    steps, values = curves._outline(x, y)
    assert len(steps) == len(values) < 3100
    assert values.max() == 50 and values.min() == -3
    assert abs(steps[values.argmax()] - 12_345) < 100
    started = time.process_time()
    steps, smooth = curves._smoothed(x, y)
    assert len(smooth) <= 2001 and time.process_time() - started < 1
    assert np.abs(smooth[:-60] - 5).max() < 0.2


def test_runs_are_compared_by_colour_and_name(tmp_path, panels):
    a = write_log(tmp_path / "first" / "run", [losses(5.0)] * 30)
    b = write_log(tmp_path / "second" / "run", [losses(4.0) | {"AP": 3.0}] * 9)
    compare_curves([a, b], tmp_path / "both.png")
    labelled = [line for line in panels["loss"].lines if line.label]
    assert [line.label for line in labelled] == ["first/run", "second/run"]
    assert len({line.colour for line in labelled}) == 2
    assert [line.label for line in panels["mask AP"].lines] == ["second/run, best 3.0 at step 1"]
    assert panels["mask AP"].lines[0].colour == labelled[1].colour
    c = write_log(tmp_path / "third", [losses(4.0)])
    compare_curves([a, c], tmp_path / "both.png")
    assert [line.label for line in panels["loss"].lines if line.label] == ["run", "third"]


def test_logs_without_rows_or_that_are_none(tmp_path):
    path = write_log(tmp_path, [])
    with pytest.raises(InputError, match="log.csv has no rows yet"):
        draw_curves(path, tmp_path / "curves.png")
    with pytest.raises(InputError, match="nowhere"):
        compare_curves([tmp_path / "nowhere", path], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_program(tmp_path, monkeypatch, capsys):
    for name in ("a", "b b"):
        write_log(tmp_path / name, [losses(5.0)] * 3)
    monkeypatch.chdir(tmp_path)
    for arguments, output in (
        (["b b"], "b b/curves.png"),
        (["a/log.csv"], "a/curves.png"),
        (["a", "b b"], "curves.png"),
        (["a", "b b", "--output", "new.png"], "new.png"),
    ):
        monkeypatch.setattr(sys, "argv", ["curves", *arguments])
        curves.main()
        assert capsys.readouterr().out == f"{output}\n"
        assert width(output) == 1200
    done = subprocess.run(
        [sys.executable, "-m", "fastinst.curves", "no run"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: cannot read")
    assert "no run" in done.stderr
