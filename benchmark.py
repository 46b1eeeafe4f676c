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
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastinst import ops
from fastinst.config import list_models
from fastinst.data.images import list_images, read_image
from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.files import check_output_file, write_whole
from fastinst.model import FastInst, create_model
from fastinst.timing import END_TO_END, STAGES, is_stable, measure, resize, summarize, warm_up
from fastinst.weights import load_model

# What "end to end" spans.
PROTOCOLS = {
    "paper": "from the resized image in host memory to masks of the original image's size on the "
    "device, without reading, decoding and resizing the image",
    "application": "from the original image in host memory to masks of its size in host memory, "
    "with Pillow's resize, without reading and decoding the image",
}
# Frames per second on one V100 by the protocol "paper", in float32 (arXiv 2303.08594).
PAPER_FPS = {
    "fastinst-d1-r50-576": 53.8,
    "fastinst-d3-r50-640": 35.5,
    "fastinst-d3-r101-640": 28.0,
    "fastinst-d1-r50d-dcn-576": 47.8,
    "fastinst-d3-r50d-dcn-640": 32.5,
}
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
        check_output_file(file)
    rows = read_rows(args.csv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.fp32_precision = "ieee"  # no TF32
    report = describe_run(args, device)
    print_run(report)

    # One model after the other; an interrupt leaves what has been measured.
    from_resized = args.protocol == "paper"
    try:
        for name in PAPER_FPS if args.paper_table else [args.model]:
            model, weights = get_model(name, args.weights, device)
            model = model.to(getattr(torch, args.dtype)).eval()
            entry = describe_model(model, weights, next(batches(args)))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            inputs, runs = batches(args), []
            warmup = warm_up(model, inputs, from_resized, args.warmup)
            entry |= {"warmup_runs": len(warmup), "stable": is_stable(warmup)} | peak_memory(device)
            try:
                for times in measure(model, inputs, from_resized, args.iterations, args.seconds):
                    runs.append(times)
            finally:
                if runs:
                    entry |= {"runs": len(runs), "stages": summarize(runs, args.batch_size)}
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
    endless = itertools.cycle(list_images(args.images))
    while True:
        yield [read_image(path) for path in itertools.islice(endless, args.batch_size)]


def describe_run(args: argparse.Namespace, device: torch.device) -> dict:
    cuda = device.type == "cuda"
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    # With "-dirty" if tracked files have changed since; empty without git.
    git = f"git -C {shlex.quote(str(Path(__file__).parent))} describe --always --dirty --abbrev=7"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmark.py", *sys.argv[1:]]),
        "commit": subprocess.getoutput(f"{git} --exclude='*' 2>/dev/null"),
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
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
    torch.ops.fastinst.masked_cross_attention: lambda q, k, *_, out_shape: 4 * q.numel() * k[2],
}


def peak_memory(device: torch.device) -> dict:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        return {"peak_memory_bytes": peak, "peak_memory_of": "tensors on the GPU"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "the process so far"}


def print_run(report: dict) -> None:
    protocol, load = report["protocol"], report["load_average"]
    print(f"protocol: {protocol}, {PROTOCOLS[protocol]}; batch {report['batch']}, TF32 off")
    for key in ("dtype", "images", "height", "width", "machine", "device", "threads", "commit"):
        print(f"{key}: {report[key]}")
    print(f"torch: {report['torch']}, CUDA {report['cuda']}, cuDNN {report['cudnn']}")
    compiled = [name for name, kernel in report["ops"].items() if kernel == "compiled"]
    others = f"compiled: {', '.join(compiled)}; the others: " if compiled else ""
    print(f"ops: {others}reference (plain PyTorch)")
    if load > os.cpu_count() / 2:
        advice = "expect better times on an idle machine"
        print(f"warning: the load average is {load:.1f}; {advice}", file=sys.stderr)


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
        outside = protocol == "paper" and stage in (STAGES[0], STAGES[-1])
        print(f"{stage:14}{times}{'   not in end to end' if outside else ''}")
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
