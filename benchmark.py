"""Measure a model's speed: frames per second, and latency percentiles of every stage.
Or the operators' (--ops): each compiled kernel beside what one would use instead, in one run.

    python benchmark.py fastinst-d3-r50-640
    python benchmark.py fastinst-d3-r50-640 --device cpu --threads 4 --csv benchmarks/cpu.csv
    python benchmark.py runs/nuclei/best.pt --images nuclei/val --protocol application
    python benchmark.py --paper-table
    python benchmark.py --ops --dtype float16 --csv benchmarks/ops_cuda.csv

A model's name means random weights, which take as long as trained ones: see `random_model`.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastinst.config import list_models
from fastinst.data.images import list_images, read_image
from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.files import check_output_file, write_whole
from fastinst.model import FastInst, create_model
from fastinst.op_timing import measure_ops, print_case
from fastinst.records import describe_machine, format_rows, peak_memory, print_machine, read_rows
from fastinst.rivals import CASES
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
OPS_CSV_HEADER = (
    "date,machine,device,torch,threads,commit,command,op,case,dtype,rival,median_ms,p95_ms,ratio"
)


def main() -> int:
    args = parse_arguments()

    # The machine. Better an error now than after the measurement.
    device = choose_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"cannot time {device.type!r}; use --device cpu or --device cuda")
    for file in filter(None, (args.json, args.csv)):
        check_output_file(file)
    text = read_rows(args.csv, OPS_CSV_HEADER if args.ops else CSV_HEADER)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.fp32_precision = "ieee"  # no TF32
    report = describe_run(args, device)
    print_run(report)

    # One model or operator after the other; an interrupt leaves what has been measured.
    try:
        if args.ops:
            dtype = getattr(torch, args.dtype)
            for entry in measure_ops(device, dtype, args.only, args.seconds):
                report["cases"].append(entry)
                print_case(entry)
                save(report, args, text)
        else:
            measure_models(args, device, report)
    except KeyboardInterrupt:
        report["interrupted"] = True
        print("interrupted", file=sys.stderr)

    if args.paper_table:
        print(f"\n{'images per second':26}{'paper, V100':>12}{'here':>10}")
        for entry in report["models"]:
            here = entry["stages"][END_TO_END]["fps"]
            print(f"{entry['model']:26}{PAPER_FPS[entry['model']]:12.1f}{here:10.2f}")
    save(report, args, text)
    return 130 if report["interrupted"] else 0


def save(report: dict, args: argparse.Namespace, text: str) -> None:
    """Everything to the JSON; to the CSV, after the text that was in it, this run's rows."""
    if args.json:
        with write_whole(args.json) as file:
            file.write(json.dumps(report, indent=1, allow_nan=False).encode())
    # Half a measurement of models is no record; of the operators each case is one.
    if args.csv and (args.ops or not report["interrupted"]):
        columns = OPS_CSV_HEADER if args.ops else CSV_HEADER
        with write_whole(args.csv) as file:
            file.write((text + format_rows(rows(report), columns)).encode())


def measure_models(args: argparse.Namespace, device: torch.device, report: dict) -> None:
    from_resized = args.protocol == "paper"
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", nargs="?", help=f"a checkpoint, or one of {', '.join(list_models())}")
    add("--weights", action="store_true", help="the released weights of a model's name")
    add("--paper-table", action="store_true", help="the paper's five models beside its speeds")
    add("--ops", action="store_true", help="the operators beside what one would use instead")
    add("--only", choices=CASES, help="of --ops, this one")
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
    duration.add_argument("--seconds", type=float, help="to measure: 10, or 1 for a case of --ops")
    add("--threads", type=int, help="of the CPU")
    add("--json", type=Path, help="write everything to this file")
    add("--csv", type=Path, help="append a row for every stage or rival to this file")
    args = parser.parse_args()
    if [args.paper_table, args.ops, bool(args.model)].count(True) != 1:
        parser.error("give either a model or --paper-table or --ops")
    if args.only and not args.ops:
        parser.error("--only is for --ops")
    for name in ("weights", "images", "height", "width", "iterations", "warmup"):
        if args.ops and getattr(args, name):
            parser.error(f"--{name} is for models, not for --ops")
    if args.images and (args.height or args.width):
        parser.error("--images have their own height and width")
    for name in ("height", "width", "batch_size", "iterations", "seconds", "threads"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if args.warmup is not None and args.warmup < 0:
        parser.error("--warmup must not be negative")
    if args.seconds is None:
        args.seconds = 1.0 if args.ops else 10.0
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
    report = describe_machine(device) | {"dtype": args.dtype, "interrupted": False}
    if args.ops:
        return report | {"cases": []}
    return report | {
        "protocol": args.protocol,
        "batch": args.batch_size,
        "images": str(args.images or "random pixels"),
        "height": args.height,  # None for a folder's
        "width": args.width,
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
    torch.ops.fastinst.attention_to_queries: lambda q, k, *_, out_shape: 4 * q.numel() * k[2],
    torch.ops.fastinst.attention_mask: lambda e, x, *_, out_shape: 2 * e.numel() * x[1],
}


def print_run(report: dict) -> None:
    if "models" in report:
        protocol = report["protocol"]
        print(f"protocol: {protocol}, {PROTOCOLS[protocol]}; batch {report['batch']}, TF32 off")
        for key in ("images", "height", "width"):
            print(f"{key}: {report[key]}")
    print(f"dtype: {report['dtype']}")
    print_machine(report)


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


def rows(report: dict) -> Iterator[dict]:
    """Those of the CSV: one for each stage of a model, or for each rival of an operator's case."""
    for entry in report.get("models", ()):
        for stage, numbers in entry["stages"].items():
            yield report | entry | numbers | {"stage": stage}
    for entry in report.get("cases", ()):
        for rival, numbers in entry["rivals"].items():
            yield report | entry | numbers | {"rival": rival}


if __name__ == "__main__":
    run(main)
