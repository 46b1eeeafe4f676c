import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import fastinst.op_timing
import fastinst.results
from fastinst import create_model, ops, rivals, timing
from fastinst.errors import run
from fastinst.weights import save_checkpoint

PROGRAM = Path(__file__).parents[1] / "benchmark.py"
NAME = "fastinst-d1-r18-192"
TINY = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32, "test_short_edge": 64, "test_max_edge": 96}


def tiny_model(name=NAME):
    return create_model(name, **TINY)


@pytest.fixture
def benchmark(monkeypatch):
    """benchmark.py as a module, whose models are tiny."""
    spec = importlib.util.spec_from_file_location("benchmark", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "create_model", tiny_model)
    return module


@pytest.fixture
def program(benchmark, monkeypatch, capsys):
    """Run the program: (arguments) -> (exit code, stdout, stderr)."""

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            run(benchmark.main)
        output = capsys.readouterr()
        return exit_.value.code, output.out, output.err

    return start


SHORT = ("--device", "cpu", "--height", 50, "--width", 70, "--warmup", 1, "--iterations", 2)


def images(*sizes):
    rng = np.random.default_rng(1)
    return [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]


@torch.inference_mode()
def test_random_weights_read_out_every_query(benchmark, monkeypatch):
    read = []

    def count(masks, *sizes):
        read.append(len(masks))
        return ops.read_out_masks(masks, *sizes)

    monkeypatch.setattr(fastinst.results, "ops", SimpleNamespace(read_out_masks=count))
    monkeypatch.setattr(benchmark, "create_model", create_model)
    for model in (create_model(NAME), benchmark.random_model(NAME)):
        dict(timing.staged(model.eval(), images((48, 64))))
    assert read[0] < read[1] == 100


@torch.inference_mode()
def test_random_weights_fit_float16(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "create_model", create_model)
    model = benchmark.random_model("fastinst-d3-r101-640").eval()
    batch, _ = model.preprocess([torch.from_numpy(images((64, 64))[0]).permute(2, 0, 1)])
    assert max(feature.abs().max() for feature in model.backbone(batch)) < 6e3


def test_flops_of_our_operators(benchmark):
    """They count as the convolution and the two products that they stand for."""

    def count(function, *args):
        with FlopCounterMode(display=False, custom_mapping=benchmark.FLOPS) as counter:
            function(*(torch.empty(shape, device="meta") for shape in args))
        return counter.get_total_flops()

    shapes = (2, 6, 9, 8), (5, 6, 3, 3)
    plain = count(lambda x, w: F.conv2d(x, w, stride=2, padding=1), *shapes)
    deformable = count(
        lambda x, w, o: ops.deform_conv2d(x, o, w, stride=2, padding=1), *shapes, (2, 18, 5, 4)
    )
    assert deformable == plain > 0

    shapes = (2, 3, 7, 4), (2, 3, 11, 4), (2, 3, 11, 4)
    plain = count(lambda q, k, v: (q @ k.transpose(2, 3)) @ v, *shapes)
    masked = count(
        lambda q, k, v, a: ops.masked_cross_attention(q, k, v, a > 0), *shapes, (2, 6, 11)
    )
    assert masked == plain > 0
    assert count(ops.attention_to_queries, *shapes) == plain

    shapes = (2, 5, 8), (2, 11, 8), (2, 5)
    plain = count(lambda e, x, b: e @ x.transpose(1, 2), *shapes)
    assert count(ops.attention_mask, *shapes) == plain > 0


def test_active_kernels_see_an_override():
    """On a device that has no kernels of ours, whatever is built here."""
    before, others = ops.active_kernels("mps"), ops.active_kernels("cpu")
    assert {"deform_conv2d", "masked_cross_attention", "read_out_masks"} < before.keys()
    assert set(before.values()) == {"reference"}
    with torch.library._scoped_library("fastinst", "IMPL") as library:
        library.impl("select_queries", lambda *args: None, "MPS")
        assert ops.active_kernels("mps") == before | {"select_queries": "compiled"}
        assert ops.active_kernels("cpu") == others
    assert ops.active_kernels("mps") == before


def test_json_and_csv(program, tmp_path):
    numbers, rows = tmp_path / "new" / "speed.json", tmp_path / "cpu.csv"
    code, out, err = program(NAME, *SHORT, "--json", numbers, "--csv", rows)
    assert code == 0, err
    assert "protocol: paper" in out and "images per second" in out and "ops: " in out
    report = json.loads(numbers.read_text())
    assert report["protocol"] == "paper" and not report["interrupted"]
    assert (report["batch"], report["dtype"]) == (1, "float32")
    assert report["ops"] == ops.active_kernels("cpu")
    assert report["threads"] == torch.get_num_threads()
    [entry] = report["models"]
    assert (entry["model"], entry["weights"], entry["input"]) == (NAME, "random", [64, 96])
    assert entry["parameters"] == sum(p.numel() for p in tiny_model().parameters())
    assert entry["flops"] > 1e6 and entry["peak_memory_bytes"] > 2**20
    assert (entry["warmup_runs"], entry["runs"], entry["stable"]) == (1, 2, False)
    assert tuple(entry["stages"]) == (*timing.STAGES, "end to end")
    end = entry["stages"]["end to end"]
    assert end["fps"] == pytest.approx(1000 / end["mean_ms"])
    assert 0 < end["median_ms"] <= end["p95_ms"] <= end["p99_ms"]

    first = rows.read_text()
    assert program(NAME, *SHORT, "--csv", rows, "--batch-size", 2, "--dtype", "bfloat16")[0] == 0
    assert rows.read_text().startswith(first)
    table = list(csv.DictReader(rows.open(newline="")))
    assert [row["stage"] for row in table] == [*timing.STAGES, "end to end"] * 2
    assert {(row["batch"], row["dtype"]) for row in table[8:]} == {("2", "bfloat16")}
    assert float(table[7]["fps"]) == pytest.approx(end["fps"], abs=1e-3)
    assert (table[0]["height"], table[0]["width"], table[0]["model"]) == ("50", "70", NAME)


@pytest.mark.parametrize("protocol", ["paper", "application"])
def test_protocols(program, monkeypatch, protocol):
    given = []

    def spy(model, originals, resized):
        given.append(resized is not None)
        return whole(model, originals, resized)

    whole = timing.whole
    monkeypatch.setattr(timing, "whole", spy)
    code, out, err = program(NAME, *SHORT, "--protocol", protocol)
    assert code == 0, err
    assert given == [protocol == "paper"] * 3  # one of warming up and two that are measured
    outside = [line.split()[0] for line in out.splitlines() if "not in end to end" in line]
    assert outside == (["resize", "download"] if protocol == "paper" else [])


def test_checkpoint_and_folder_of_images(program, tmp_path):
    checkpoint, folder = tmp_path / "best.pt", tmp_path / "my images"
    save_checkpoint(checkpoint, tiny_model(), None, None)
    folder.mkdir()
    for i, image in enumerate(images((50, 70), (90, 40))):
        Image.fromarray(image).save(folder / f"{i}.png")
    numbers = tmp_path / "speed.json"
    options = ("--images", folder, "--device", "cpu", "--warmup", 0, "--iterations", 3)
    code, _, err = program(checkpoint, *options, "--json", numbers)
    assert code == 0, err
    report = json.loads(numbers.read_text())
    assert (report["images"], report["height"]) == (str(folder), None)
    assert report["models"][0]["weights"] == str(checkpoint)


def test_paper_table(program, benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "create_model", lambda name: tiny_model(NAME))
    monkeypatch.setattr(benchmark, "PAPER_FPS", {NAME: 53.8})
    code, out, err = program("--paper-table", *SHORT)
    assert code == 0, err
    name, paper, here = out.splitlines()[-1].split()
    assert (name, paper) == (NAME, "53.8") and float(here) > 0


@pytest.fixture
def two_cases(monkeypatch):
    """--ops with two operators of one case each, neither of them compiled."""

    def cases(op):
        def make(device, dtype):
            zeros = torch.zeros(3, dtype=dtype)
            calls = {"kernel": zeros.exp, "definition": zeros.exp, "other": zeros.exp2}
            yield rivals.Case(op, f"{dtype}, all zero", calls, {"missing": "no such thing"})

        return make

    two = {op: cases(op) for op in ("select_queries", "attention_mask")}
    monkeypatch.setattr(fastinst.op_timing, "CASES", two)
    none = dict.fromkeys(two, "reference")
    monkeypatch.setattr(fastinst.op_timing, "active_kernels", lambda device: none)
    return list(two)


OPS = ("--ops", "--device", "cpu", "--seconds", 0.001)


def test_ops(program, two_cases, tmp_path):
    numbers, path = tmp_path / "ops.json", tmp_path / "ops.csv"
    code, out, err = program(*OPS, "--json", numbers, "--csv", path)
    assert code == 0, err
    assert "machine: " in out and "protocol" not in out
    assert "skipped: select_queries is not compiled for cpu" in out
    report = json.loads(numbers.read_text())
    assert [entry["op"] for entry in report["cases"]] == two_cases
    assert report["cases"][0]["skipped"].keys() == {"kernel", "missing"}

    code, _, err = program(*OPS, "--only", "attention_mask", "--dtype", "float16", "--csv", path)
    assert code == 0, err
    table = list(csv.DictReader(path.open(newline="")))
    assert [row["op"] for row in table[::2]] == [*two_cases, "attention_mask"]
    assert [row["rival"] for row in table[:2]] == ["definition", "other"]
    assert table[-1]["dtype"] == "float16" and table[-1]["case"] == "torch.float16, all zero"
    row, numbers = table[0], report["cases"][0]["rivals"]["definition"]
    assert float(row["median_ms"]) == pytest.approx(numbers["median_ms"], abs=1e-4)
    assert row["ratio"] == "" and row["command"].startswith("python benchmark.py --ops")


def test_an_interrupt_keeps_the_cases_that_were_measured(
    program, benchmark, two_cases, tmp_path, monkeypatch
):
    path, kept = tmp_path / "ops.csv", []

    def interrupted(entry):
        kept.append(path.read_text().count("\n") if path.exists() else 0)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "print_case", interrupted)
    code, _, err = program(*OPS, "--csv", path)
    assert code == 130 and "interrupted" in err
    assert [*kept, path.read_text().count("\n")] == [0, 3, 5]


def test_an_interrupt_keeps_what_was_measured(program, monkeypatch, tmp_path):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:  # after one of warming up and two that are measured
            raise KeyboardInterrupt
        return whole(*args)

    whole = timing.whole
    monkeypatch.setattr(timing, "whole", interrupted)
    numbers, rows = tmp_path / "speed.json", tmp_path / "cpu.csv"
    code, out, err = program(NAME, *SHORT[:-1], 9, "--json", numbers, "--csv", rows)
    assert code == 130 and "interrupted" in err
    report = json.loads(numbers.read_text())
    assert report["interrupted"] and report["models"][0]["runs"] == 2
    assert "2 runs after 1" in out and not rows.exists()


def test_bad_input(program, benchmark, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "models.csv").write_text(benchmark.CSV_HEADER + "\n")
    for arguments, message in (
        (["fastinst-d9"], "neither a file nor a model; the models are fastinst-d1-r50-576"),
        ([], "either a model or --paper-table"),
        ([NAME, "--paper-table"], "either a model or --paper-table"),
        ([NAME, "--ops"], "either a model or --paper-table or --ops"),
        (["--ops", "--height", 9], "--height is for models, not for --ops"),
        (["--ops", "--only", "mul"], "invalid choice: 'mul'"),
        ([NAME, "--only", "attention_mask"], "--only is for --ops"),
        (["--ops", "--csv", tmp_path / "models.csv"], "does not have the columns"),
        ([NAME, "--iterations", 0], "--iterations must be positive"),
        ([NAME, "--iterations", 1, "--seconds", 1], "not allowed with"),
        ([NAME, "--warmup", -1], "--warmup must not be negative"),
        ([NAME, "--batch-size", 0], "--batch-size must be positive"),
        ([NAME, "--device", "abacus"], "abacus"),
        ([NAME, "--device", "meta"], "cannot time 'meta'"),
        ([NAME, "--images", tmp_path / "none"], "no such folder"),
        ([NAME, "--images", tmp_path / "empty"], "no images"),
        ([NAME, "--images", tmp_path, "--height", 9], "their own height"),
        ([NAME, "--csv", tmp_path / "other.csv"], "does not have the columns"),
    ):
        code, _, err = program(*arguments)
        assert code == 2 and message in err, (arguments, err)
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"
