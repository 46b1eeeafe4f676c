"""Measure a model's speed: frames per second, and latency percentiles of every stage.

    python benchmark.py fastinst-d3-r50-640
    python benchmark.py fastinst-d3-r50-640 --device cpu --threads 4 --csv benchmarks/cpu.csv
    python benchmark.py runs/nuclei/best.pt --images nuclei/val --protocol application
    python benchmark.py --paper-table

A model's name means random weights, which take as long as trained ones: see `random_model`.
"""

import argparse
import csv
import datetime
import io
import itertools
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastinst import ops
from fastinst.config import list_models
from fastinst.data.augment import resize_shortest_edge
from fastinst.data.coco import read_image
from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.files import make_output_folder, write_whole
from fastinst.model import FastInst, create_model
from fastinst.results import Instances, postprocess
from fastinst.weights import load_model

STAGES = ("resize", "preprocess", "backbone", "pixel decoder", "decoder", "read-out", "download")
END_TO_END = "end to end"
# The stages that "end to end" spans, and in words.
PROTOCOLS = {
    "paper": (
        STAGES[1:6],
        "from the resized image in host memory to masks of the original image's size on the "
        "device, without reading, decoding and resizing the image",
    ),
    "application": (
        STAGES,
        "from the original image in host memory to masks of its size in host memory, with "
        "Pillow's resize, without reading and decoding the image",
    ),
}
# Frames per second on one V100 by the protocol "paper", in float32 (arXiv 2303.08594).
PAPER_FPS = {
    "fastinst-d1-r50-576": 53.8,
    "fastinst-d3-r50-640": 35.5,
    "fastinst-d3-r101-640": 28.0,
    "fastinst-d1-r50d-dcn-576": 47.8,
    "fastinst-d3-r50d-dcn-640": 32.5,
}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
CSV_HEADER = (
    "date,machine,device,torch,threads,commit,command,model,protocol,height,width,batch,dtype,"
    "stage,median_ms,p95_ms,p99_ms,fps"
)


def main() -> int:
    args = parse_arguments()

    # The machine. Better an error now than after the measurement.
    device = choose_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"cannot time {device.type!r}; use --device cpu or --device cuda")
    for file in filter(None, (args.json, args.csv)):
        make_output_folder(file.parent)
    rows = read_rows(args.csv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.fp32_precision = "ieee"  # no TF32
    report = describe_run(args, device)
    print_run(report)

    # One model after the other; an interrupt leaves what has been measured.
    try:
        for name in PAPER_FPS if args.paper_table else [args.model]:
            model, weights = get_model(name, args.weights, device)
            model = model.to(getattr(torch, args.dtype)).eval()
            entry = describe_model(model, weights, next(batches(args)))
            timings = {stage: [] for stage in (*STAGES, END_TO_END)}
            try:
                measure(model, args, entry, timings)
            finally:
                if timings[END_TO_END]:
                    entry["runs"] = len(timings[END_TO_END])
                    entry["stages"] = summarize(timings, args.batch_size)
                    report["models"].append(entry)
                    print_model(entry, args.protocol)
    except KeyboardInterrupt:
        report["interrupted"] = True
        print("interrupted", file=sys.stderr)

    # The table and the files. Half a measurement is no record for the CSV.
    if args.paper_table:
        print(f"\n{'images per second':26}{'paper, V100':>12}{'here':>10}")
        for entry in report["models"]:
            here = entry["stages"][END_TO_END]["fps"]
            print(f"{entry['model']:26}{PAPER_FPS[entry['model']]:12.1f}{here:10.2f}")
    if args.json:
        with write_whole(args.json) as file:
            file.write(json.dumps(report, indent=1, allow_nan=False).encode())
    if args.csv and not report["interrupted"]:
        with write_whole(args.csv) as file:
            file.write((rows + new_rows(report)).encode())
    return 130 if report["interrupted"] else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", nargs="?", help=f"a checkpoint, or one of {', '.join(list_models())}")
    add("--weights", action="store_true", help="the released weights of a model's name")
    add("--paper-table", action="store_true", help="the paper's five models beside its speeds")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--protocol", choices=PROTOCOLS, default="paper", help="what end to end spans")
    add("--height", type=int, help="of the original image, 480 by default")
    add("--width", type=int, help="of the original image, 640 by default")
    add("--images", type=Path, help="a folder of images to take in turn; default: random pixels")
    add("--batch-size", type=int, default=1)
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--warmup", type=int, help="runs before the measured ones; default: until stable")
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument("--iterations", type=int, help="runs to measure")
    duration.add_argument("--seconds", type=float, default=10.0, help="to measure, 10 by default")
    add("--threads", type=int, help="of the CPU")
    add("--json", type=Path, help="write everything to this file")
    add("--csv", type=Path, help="append a row for every stage to this file")
    args = parser.parse_args()
    if args.paper_table == bool(args.model):
        parser.error("give either a model or --paper-table")
    if args.images and (args.height or args.width):
        parser.error("--images have their own height and width")
    for name in ("height", "width", "batch_size", "iterations", "seconds", "threads"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if args.warmup is not None and args.warmup < 0:
        parser.error("--warmup must not be negative")
    if args.images is None:
        args.height, args.width = args.height or 480, args.width or 640
    return args


# What is measured.


def get_model(name: str, released: bool, device: torch.device) -> tuple[FastInst, str]:
    """The model, and where its weights are from."""
    if released or Path(name).is_file():
        return load_model(name, device)[0], name if Path(name).is_file() else "released"
    if name not in list_models():
        known = ", ".join(list_models())
        raise InputError(f"{name!r} is neither a file nor a model; the models are {known}")
    return random_model(name).to(device), "random"


def random_model(name: str) -> FastInst:
    """A model whose weights, though random, take the time of trained ones.

    Most of the network does not care what it computes. But fresh weights overflow float16 in
    ResNet-101, deform no convolution, and give few queries the 100 best (query, class) pairs, of
    whose queries the masks are read out. Here all 100 masks are, the most there can be.
    """
    torch.manual_seed(0)
    model = create_model(name)
    for key, value in model.state_dict().items():
        if key.endswith("bn3.weight"):
            value.fill_(0.2)
        elif key.endswith("offset.bias"):
            value.normal_(std=2.0)
    model.decoder.heads[-1].class_mlp.layers[-1].bias.data[0] = 20.0
    return model


def batches(args: argparse.Namespace) -> Iterator[list[np.ndarray]]:
    """Batches of uint8 [H, W, 3] images without end."""
    if args.images is None:
        shape = (args.batch_size, args.height, args.width, 3)
        pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        yield from itertools.repeat(list(pixels))
    if not args.images.is_dir():
        raise InputError(f"{args.images}: no such folder")
    paths = sorted(p for p in args.images.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{args.images}: no images ({', '.join(sorted(SUFFIXES))}) in it")
    endless = itertools.cycle(paths)
    while True:
        yield [read_image(path) for path in itertools.islice(endless, args.batch_size)]


def resize(model: FastInst, originals: list[np.ndarray]) -> list[Tensor]:
    """uint8 [H, W, 3] images to uint8 [3, h, w] tensors of the model's test size."""
    edges = (model.config.test_short_edge, model.config.test_max_edge)
    resized = [resize_shortest_edge(image, *edges) for image in originals]
    return [torch.from_numpy(image).permute(2, 0, 1) for image in resized]


def staged(model: FastInst, originals: list[np.ndarray]) -> Iterator[tuple[str, object]]:
    """All of the work; yields each of STAGES as it ends, with its result."""
    resized = resize(model, originals)
    yield "resize", resized
    batch, image_sizes = model.preprocess(resized)
    yield "preprocess", batch
    features = model.backbone(batch)
    yield "backbone", features
    p3, p4, _ = model.pixel_decoder(features)
    yield "pixel decoder", p3
    queries = model.queries(p4, model.positions(p4.shape[2:]))
    logits, masks = model.decoder(p3, model.positions(p3.shape[2:]), queries)
    outputs = {"pred_logits": logits, "pred_masks": masks, "query_indices": queries.indices}
    yield "decoder", outputs
    found = postprocess(outputs, image_sizes, [image.shape[:2] for image in originals])
    yield "read-out", found
    yield "download", [instances.to("cpu") for instances in found]


def whole(
    model: FastInst, originals: list[np.ndarray], resized: list[Tensor] | None
) -> list[Instances]:
    """A protocol's work in one go: of "paper" given the resized images, else of "application"."""
    batch, image_sizes = model.preprocess(resized or resize(model, originals))
    found = postprocess(model(batch), image_sizes, [image.shape[:2] for image in originals])
    return found if resized else [instances.to("cpu") for instances in found]


# How it is measured.


@torch.inference_mode()
def measure(
    model: FastInst, args: argparse.Namespace, entry: dict, timings: dict[str, list[float]]
) -> None:
    """Warms up and completes `entry`; then appends milliseconds to `timings`."""
    device = model.positions.weight.device
    inputs = batches(args)

    def time_whole(originals: list[np.ndarray]) -> float:
        resized = resize(model, originals) if args.protocol == "paper" else None
        synchronize(device)
        start = time.perf_counter()
        _ = whole(model, originals, resized)  # kept: freeing the masks is not part of the work
        synchronize(device)
        return 1000 * (time.perf_counter() - start)

    def time_stages(originals: list[np.ndarray]) -> list[float]:
        synchronize(device)
        marks = [mark(device), *(mark(device) for _ in staged(model, originals))]
        synchronize(device)
        return [milliseconds(*pair) for pair in itertools.pairwise(marks)]

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warmup, start = [], time.perf_counter()
    while args.warmup is None or len(warmup) < args.warmup:
        warmup.append(time_whole(next(inputs)))
        seconds = time.perf_counter() - start
        # A GPU's clock takes about a second to rise; a busy machine may never be stable.
        if args.warmup is None and (seconds > 30 or seconds > 1 and is_stable(warmup)):
            break
    entry |= {"warmup_runs": len(warmup), "stable": is_stable(warmup)} | peak_memory(device)
    time_stages(next(inputs))

    start = time.perf_counter()
    for runs in itertools.count(1):
        # Both kinds in turn, so that they meet the same state of the machine.
        originals = next(inputs)
        times = [*time_stages(originals), time_whole(originals)]
        for stage, value in zip((*STAGES, END_TO_END), times, strict=True):
            timings[stage].append(value)
        seconds = time.perf_counter() - start
        if runs == args.iterations or args.iterations is None and seconds > args.seconds:
            break


def is_stable(times: list[float]) -> bool:
    """Whether the medians of the last three runs and of the three before differ by under 5 %."""
    if len(times) < 6:
        return False
    last, before = statistics.median(times[-3:]), statistics.median(times[-6:-3])
    return abs(last - before) < 0.05 * before


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> "torch.cuda.Event | float":
    """Now, on the device's own time line: a GPU's stages are timed without waiting for it."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: "torch.cuda.Event | float", end: "torch.cuda.Event | float") -> float:
    return 1000 * (end - start) if isinstance(start, float) else start.elapsed_time(end)


def summarize(timings: dict[str, list[float]], batch_size: int) -> dict[str, dict[str, float]]:
    """Of each stage: percentiles, mean, and the paper's FPS, which is images over total time."""
    stages = {}
    for stage, times in timings.items():
        median, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
        mean = statistics.fmean(times)
        row = {"median_ms": median, "p95_ms": p95, "p99_ms": p99, "mean_ms": mean}
        stages[stage] = row | {"fps": 1000 * batch_size / mean}
    return stages


# What it was measured on, shown and kept.


def describe_run(args: argparse.Namespace, device: torch.device) -> dict:
    cuda = device.type == "cuda"
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    # The commit, with "-dirty" if tracked files have changed since; empty without git.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        commit = git.stdout.strip()
    except OSError:
        commit = ""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmark.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "ops": ops.active_kernels(device.type),
        "protocol": args.protocol,
        "batch": args.batch_size,
        "dtype": args.dtype,
        "images": str(args.images or "random pixels"),
        "height": args.height,  # None for a folder's
        "width": args.width,
        "interrupted": False,
        "models": [],
    }


def describe_model(model: FastInst, weights: str, originals: list[np.ndarray]) -> dict:
    # The meta device computes shapes only, so that every operator is seen, the same way whatever
    # kernel a real device chooses.
    with torch.device("meta"), torch.inference_mode():
        twin = FastInst(model.config).eval()
        batch, _ = twin.preprocess([image.to("meta") for image in resize(model, originals)])
        with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
            twin(batch)
    return {
        "model": model.config.name,
        "weights": weights,
        "input": list(batch.shape[2:]),  # of the first batch
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": counter.get_total_flops(),  # of convolutions and matrix products
    }


# Of our operators, from their arguments' shapes; the counter knows PyTorch's own.
FLOPS = {
    torch.ops.fastinst.deform_conv2d: (
        lambda input, offset, weight, *_, out_shape: 2 * out_shape.numel() * weight[1:].numel()
    ),
    torch.ops.fastinst.masked_cross_attention: (
        lambda query, key, *_, out_shape: 4 * query.numel() * key[2]
    ),
}


def peak_memory(device: torch.device) -> dict:
    if device.type == "cuda":
        peak, what = torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        what = "the process so far"
    return {"peak_memory_bytes": peak, "peak_memory_of": what}


def print_run(report: dict) -> None:
    protocol, load = report["protocol"], report["load_average"]
    print(f"protocol: {protocol}, {PROTOCOLS[protocol][1]}; batch {report['batch']}, TF32 off")
    for key in ("dtype", "images", "height", "width", "machine", "device", "threads", "commit"):
        print(f"{key}: {report[key]}")
    print(f"torch: {report['torch']}, CUDA {report['cuda']}, cuDNN {report['cudnn']}")
    compiled = [name for name, kernel in report["ops"].items() if kernel == "compiled"]
    others = f"compiled: {', '.join(compiled)}; the others: " if compiled else ""
    print(f"ops: {others}reference (plain PyTorch)")
    if load > os.cpu_count() / 2:
        print(
            f"warning: the machine is busy, with a load average of {load:.1f} on "
            f"{os.cpu_count()} cores: expect better times without its other work",
            file=sys.stderr,
        )


def print_model(entry: dict, protocol: str) -> None:
    stages, memory = entry["stages"], entry["peak_memory_bytes"] / 2**20
    unstable = "" if entry["stable"] else ", not seen to be stable"
    print(
        f"\n{entry['model']}, {entry['weights']} weights, input {tuple(entry['input'])}\n"
        f"{entry['parameters']:,} parameters, {entry['flops'] / 1e9:.1f} GFLOPs (a multiply-add "
        f"is two), peak memory {memory:.0f} MiB ({entry['peak_memory_of']})\n"
        f"{entry['runs']} runs after {entry['warmup_runs']} to warm up{unstable}\n"
        f"{'ms':14}{'p50':>9}{'p95':>9}{'p99':>9}{'mean':>9}"
    )
    for stage, row in stages.items():
        times = "".join(f"{row[key]:9.2f}" for key in ("median_ms", "p95_ms", "p99_ms", "mean_ms"))
        spanned = stage in (*PROTOCOLS[protocol][0], END_TO_END)
        print(f"{stage:14}{times}{'' if spanned else '   not in end to end'}")
    print(f"{stages[END_TO_END]['fps']:.2f} images per second")


def read_rows(path: Path | None) -> str:
    """The text of a CSV that rows can be appended to."""
    if path is None or not path.is_file():
        return CSV_HEADER + "\n"
    text = path.read_text()
    if text.partition("\n")[0] != CSV_HEADER:
        raise InputError(f"{path} does not have the columns {CSV_HEADER}; name another file")
    return text


def new_rows(report: dict) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEADER.split(","), extrasaction="ignore", lineterminator="\n")
    for entry in report["models"]:
        for stage, row in entry["stages"].items():
            rounded = {key: round(value, 3) for key, value in row.items()}
            writer.writerow(report | entry | rounded | {"stage": stage})
    return text.getvalue()


if __name__ == "__main__":
    run(main)
