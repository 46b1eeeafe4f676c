"""benchmark.py: what it prints and writes of models."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_coco import write_coco

import benchmark
import fastinst.benchmarking.cost
from fastinst import create_model, ops
from fastinst.benchmarking import measurement
from fastinst.benchmarking.report import CSV_HEADER
from fastinst.export.artefact import Artefact
from fastinst.export.metadata import Metadata
from fastinst.export.program import OUTPUTS
from fastinst.weights import save_checkpoint

NAME = "fastinst-d1-r18-192"
TINY = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32, "test_short_edge": 64, "test_max_edge": 96}
STAGES = ("resize", "preprocess", "backbone", "pixel decoder", "decoder", "read-out", "download")


def tiny_model(name=NAME, num_classes=80):
    return create_model(name, num_classes=num_classes, **TINY)


@pytest.fixture
def program(run_benchmark, monkeypatch):
    """Runs the program, whose models are tiny."""
    monkeypatch.setattr(fastinst.benchmarking.cost, "create_model", tiny_model)
    return run_benchmark


QUICK = ("--device", "cpu", "--warmup", 1, "--iterations", 2)
SHORT = (*QUICK, "--height", 50, "--width", 70)


def test_what_is_printed_and_written(program, tmp_path):
    numbers, table, picture = (
        tmp_path / "new" / "speed.json",
        tmp_path / "a.csv",
        tmp_path / "a.png",
    )
    code, out, err = program(NAME, *SHORT, "--json", numbers, "--csv", table, "--plot", picture)
    assert code == 0, err
    assert "protocol: paper" in out and "engine-float32: float32 on cpu; convolutions" in out
    report = json.loads(numbers.read_text())
    assert report["protocol"] == "paper" and not report["interrupted"]
    assert report["ops"] == ops.active_kernels("cpu")
    assert report["threads"] == torch.get_num_threads() and report["isa"] and report["libraries"]
    [case] = report["cases"]
    assert (case["model"], case["weights"], case["input"]) == (NAME, "random", [64, 96])
    assert case["batch"] == 1 and not case["interrupted"] and case["flops"] > 1e6
    [entry] = case["variants"]
    assert (entry["variant"], entry["dtype"], entry["ap"]) == ("engine-float32", "float32", None)
    assert (entry["warmup_runs"], entry["runs"], entry["stable"]) == (1, 2, False)
    assert tuple(entry["stages"]) == (*STAGES, "end to end")
    end = entry["stages"]["end to end"]
    assert end["fps"] == pytest.approx(1000 / end["mean_ms"]) and end["ratio"] is None
    assert 0 < end["median_ms"] <= end["p95_ms"] <= end["p99_ms"]

    rows = list(csv.DictReader(table.open(newline="")))
    assert [row["stage"] for row in rows] == [*STAGES, "end to end"]
    assert ",".join(rows[0]) == CSV_HEADER
    assert float(rows[-1]["median_ms"]) == pytest.approx(end["median_ms"], abs=1e-4)
    assert (rows[0]["height"], rows[0]["width"], rows[0]["input"]) == ("50", "70", "64x96")
    with Image.open(picture) as image:
        assert image.width == 1200 and len(image.getcolors(1 << 20)) > 20


def test_compare(program, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "default_variants", lambda *_: ["release", "engine-float32"])
    numbers = tmp_path / "speed.json"
    code, out, err = program(NAME, "--compare", *SHORT, "--json", numbers)
    assert code == 0, err
    release, engine = json.loads(numbers.read_text())["cases"][0]["variants"]
    medians = [entry["stages"]["end to end"]["median_ms"] for entry in (release, engine)]
    ratio = engine["stages"]["end to end"]["ratio"]
    assert ratio == pytest.approx(medians[0] / medians[1])
    assert release["stages"]["decoder"]["ratio"] == 1
    titles, *lines = out.splitlines()[-3:]
    assert titles.split()[:4] == ["model", "batch", "input", "variant"] and "V100" not in titles
    assert "1.00x" in lines[0] and f"{ratio:.2f}x" in lines[1]


def test_sweep(program, tmp_path):
    """Each size with each number of images; the longer edge keeps its proportion."""
    table = tmp_path / "a.csv"
    table.write_text(CSV_HEADER + "\nold\n")
    options = ("--variants", "plain", "--size", 64, 128, "--batch-size", 1, 2, "--csv", table)
    code, out, err = program(NAME, *QUICK, "--height", 32, "--width", 64, *options)
    assert code == 0, err
    assert table.read_text().startswith(CSV_HEADER + "\nold\n")
    rows = list(csv.DictReader(table.open(newline="")))[1:]
    found = [(row["input"], row["batch"]) for row in rows if row["stage"] == "end to end"]
    assert found == [("64x96", "1"), ("64x96", "2"), ("96x192", "1"), ("96x192", "2")]


@pytest.mark.parametrize("protocol", ["paper", "deploy"])
def test_protocols(program, monkeypatch, protocol):
    given = []

    def spy(variant, originals, name):
        given.append((name, variant.dtype))
        return time_whole(variant, originals, name)

    time_whole = measurement.time_whole
    monkeypatch.setattr(measurement, "time_whole", spy)
    code, out, err = program(NAME, *SHORT, "--protocol", protocol, "--dtype", "float32")
    assert code == 0, err
    assert given == [(protocol, "float32")] * 3  # one of warming up and two that are measured
    outside = [line.split()[0] for line in out.splitlines() if "not in end to end" in line]
    assert outside == (["resize", "download"] if protocol == "paper" else [])


@pytest.mark.parametrize(("protocol", "dtype"), [("paper", "float32"), ("deploy", "bfloat16")])
def test_default_dtype(program, monkeypatch, protocol, dtype):
    auto = {"auto": torch.bfloat16, "float32": torch.float32}
    monkeypatch.setattr(benchmark, "choose_dtype", lambda name, device: auto[name])
    code, out, err = program(NAME, *SHORT, "--protocol", protocol)
    assert code == 0, err
    assert f"engine-{dtype}" in out.splitlines()[-1]


def test_checkpoint_and_folder_of_images(program, tmp_path):
    checkpoint, folder = tmp_path / "best.pt", tmp_path / "my images"
    save_checkpoint(checkpoint, tiny_model(), None, None)
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i, size in enumerate(((50, 70), (90, 40))):
        pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    numbers = tmp_path / "speed.json"
    code, _, err = program(checkpoint, "--images", folder, *QUICK, "--json", numbers)
    assert code == 0, err
    report = json.loads(numbers.read_text())
    assert (report["images"], report["height"]) == (str(folder), None)
    assert report["cases"][0]["weights"] == "best.pt"


def test_an_exported_file(program, monkeypatch, tmp_path):
    """Its dtype is what it computes in, though what it takes is float32."""
    model = tiny_model().eval()

    def run(images):
        assert images.shape == (1, 3, 64, 96)
        outputs = model(images)
        return [outputs[name] for name in OUTPUTS]

    metadata = Metadata(model.config, None, None, (1, 64, 96), "float16")
    artefact = Artefact(run, metadata, torch.device("cpu"))
    monkeypatch.setattr("fastinst.export.artefact.load_artefact", lambda path, device: artefact)
    numbers = tmp_path / "speed.json"
    code, out, err = program("my model.ONNX", *SHORT, "--json", numbers)
    assert code == 0, err
    [case] = json.loads(numbers.read_text())["cases"]
    [entry] = case["variants"]
    assert (case["weights"], entry["variant"]) == ("my model.ONNX", "artefact")
    assert entry["dtype"] == "float16" and entry["network"] == "float16 on cpu, an exported file"
    stages = ("resize", "preprocess", "network", "read-out", "download", "end to end")
    assert tuple(entry["stages"]) == stages


def test_paper_table(program, monkeypatch):
    monkeypatch.setattr(benchmark, "PAPER_FPS", {NAME: 53.8})
    monkeypatch.setattr(fastinst.benchmarking.report, "PAPER_FPS", {NAME: 53.8})
    code, out, err = program("--paper-table", *SHORT)
    assert code == 0, err
    assert out.splitlines()[-1].split()[0] == NAME and out.splitlines()[-1].endswith(" 53.8")


def test_ap_is_of_what_is_timed(program, monkeypatch, tmp_path):
    checkpoint, timed, judged = tmp_path / "best.pt", [], []
    save_checkpoint(checkpoint, tiny_model(num_classes=3), ("red", "green", "blue"), (3, 7, 20))
    write_coco(tmp_path / "data", [[(0, 0, 0, 32, 32)], [(1, 40, 8, 64, 40)]])

    def spy(variant, *args):
        timed.append(variant.predictor)
        return time_whole(variant, *args)

    def evaluate_and_note(predictor, dataset, **options):
        judged.append(predictor)
        assert predictor.class_names == ("red", "green", "blue") and options == {"max_images": 1}
        evaluator = evaluate(predictor, dataset, **options)
        assert evaluator.summarize()["images"] == 1
        return SimpleNamespace(summarize=lambda: {"AP": 12.3})

    time_whole, evaluate = measurement.time_whole, benchmark.evaluate
    monkeypatch.setattr(measurement, "time_whole", spy)
    monkeypatch.setattr(benchmark, "evaluate", evaluate_and_note)
    options = ("--data", tmp_path / "data", "--max-images", 1, "--variants", "plain", "release")
    code, out, err = program(checkpoint, *SHORT, *options)
    assert code == 0, err
    assert len(judged) == 1 and judged[0] is timed[0]
    lines = out.splitlines()
    assert "AP" in lines[-3].split() and "12.30" in lines[-2] and "12.30" not in lines[-1]


@pytest.mark.parametrize(("after", "kept"), [(1, []), (5, [(1, 2), (2, 1)]), (6, [(1, 2), (2, 2)])])
def test_an_interrupt_keeps_what_was_measured(program, monkeypatch, tmp_path, after, kept):
    """Of cases of three runs, the first to warm up. The CSV is for whole ones."""
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return time_whole(*args)

    time_whole = measurement.time_whole
    monkeypatch.setattr(measurement, "time_whole", interrupted)
    numbers, table = tmp_path / "speed.json", tmp_path / "a.csv"
    files = ("--json", numbers, "--csv", table, "--plot", tmp_path / "a.png")
    code, out, err = program(NAME, *SHORT, "--batch-size", 1, 2, 3, *files)
    assert code == 130 and "interrupted" in err
    report = json.loads(numbers.read_text())
    assert report["interrupted"]
    assert kept == [(case["batch"], case["variants"][0]["runs"]) for case in report["cases"]]
    batches = {row["batch"] for row in csv.DictReader(table.open(newline=""))}
    assert batches == {str(batch) for batch, runs in kept if runs == 2}
    assert (tmp_path / "a.png").exists() == bool(kept)


def test_bad_input(program, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "models.csv").write_text(CSV_HEADER + "\n")
    for arguments, message in (
        (["fastinst-d9"], "neither a file nor a model; the models are fastinst-d1-r50-576"),
        ([], "either a model or --paper-table"),
        ([NAME, "--paper-table"], "either a model or --paper-table"),
        ([NAME, "--ops"], "either a model or --paper-table or --ops"),
        (["--ops", "--height", 9], "--height is for models, not for --ops"),
        (["--ops", "--compare"], "--compare is for models, not for --ops"),
        (["--ops", "--plot", "a.png"], "--plot is for models, not for --ops"),
        (["--ops", "--only", "mul"], "invalid choice: 'mul'"),
        ([NAME, "--only", "attention_mask"], "--only is for --ops"),
        (["--ops", "--csv", tmp_path / "models.csv"], "does not have the columns"),
        ([NAME, "--iterations", 0], "--iterations must be positive"),
        ([NAME, "--iterations", 1, "--seconds", 1], "not allowed with"),
        ([NAME, "--warmup", -1], "--warmup must not be negative"),
        ([NAME, "--batch-size", 2, 0], "--batch-size must be positive"),
        ([NAME, "--size", 0], "--size must be positive"),
        ([NAME, "--variants", "fast"], "invalid choice: 'fast'"),
        ([NAME, "--variants", "plain", "--compare"], "give one of --compare, --variants and"),
        ([NAME, "--dtype", "float16", "--compare"], "give one of --compare, --variants and"),
        ([NAME, "--dtype", "int4"], "unknown dtype 'int4'"),
        ([NAME, "--data", tmp_path / "none"], "none"),
        (["exported.onnx", "--compare"], "exported.onnx is measured as it was exported"),
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
