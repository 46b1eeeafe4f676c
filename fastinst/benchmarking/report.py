"""What benchmark.py says of models: tables, rows of a CSV, and the chart."""

import math
import sys
from collections.abc import Iterator

from PIL import Image

from fastinst.bars import Bar, Group, draw_bars
from fastinst.benchmarking.measurement import END_TO_END, OUTSIDE_PAPER, PROTOCOLS
from fastinst.records import print_machine

# Frames per second on one V100 by the protocol "paper", in float32 (arXiv 2303.08594).
PAPER_FPS = {
    "fastinst-d1-r50-576": 53.8,
    "fastinst-d3-r50-640": 35.5,
    "fastinst-d3-r101-640": 28.0,
    "fastinst-d1-r50d-dcn-576": 47.8,
    "fastinst-d3-r50d-dcn-640": 32.5,
}
CSV_HEADER = (
    "date,machine,isa,device,torch,threads,commit,command,model,weights,protocol,variant,dtype,"
    "batch,height,width,input,stage,runs,median_ms,p95_ms,p99_ms,fps,ratio,working_mib,ap,unsteady"
)


def print_run(report: dict) -> None:
    protocol = report["protocol"]
    print(f"protocol: {protocol}, {PROTOCOLS[protocol]}; TF32 off")
    size = "" if report["height"] is None else f", {report['height']} x {report['width']}"
    print(f"images: {report['images']}{size}")
    print_machine(report)


def print_case(case: dict) -> None:
    """Of each variant of one model, size and batch: percentiles of every stage."""
    height, width = case["input"]
    print(
        f"\n{case['model']}, {case['weights']} weights, batch {case['batch']}, "
        f"input {height} x {width}\n"
        f"{case['parameters']:,} parameters, {case['flops'] / 1e9:.1f} GFLOPs (a multiply-add is "
        f"two)"
    )
    for entry in case["variants"]:
        unstable = "" if entry["stable"] else ", not seen to be stable"
        print(
            f"\n{entry['variant']}: {entry['network']}\n"
            f"{entry['runs']} runs after {entry['warmup_runs']} to warm up{unstable}\n"
            f"{'ms':14}{'p50':>10}{'p95':>10}{'p99':>10}{'mean':>10}"
        )
        for stage, row in entry["stages"].items():
            keys = ("median_ms", "p95_ms", "p99_ms", "mean_ms")
            times = "".join(f"{row[key]:10.2f}" for key in keys)
            outside = case["protocol"] == "paper" and stage in OUTSIDE_PAPER
            print(f"{stage:14}{times}{'   not in end to end' if outside else ''}")
    for finding in case["unsteady"]:
        print(f"warning: {finding}", file=sys.stderr)


def print_summary(cases: list[dict]) -> None:
    """A line for each variant of each case, with the columns that say something."""
    lines = []
    for case in cases:
        for entry in case["variants"]:
            end, memory, ap = entry["stages"][END_TO_END], entry["working_memory"], entry["ap"]
            paper = PAPER_FPS.get(case["model"]) if case["batch"] == 1 else None
            lines.append(
                {
                    "model": case["model"],
                    "batch": str(case["batch"]),
                    "input": "{} x {}".format(*case["input"]),
                    "variant": entry["variant"],
                    "p50 ms": f"{end['median_ms']:.2f}",
                    "p95": f"{end['p95_ms']:.2f}",
                    "p99": f"{end['p99_ms']:.2f}",
                    "images/s": f"{end['fps']:.2f}",
                    "ratio": "" if end["ratio"] is None else f"{end['ratio']:.2f}x",
                    "MiB": "" if memory is None else f"{memory / 2**20:.0f}",
                    "AP": "" if ap is None else f"{ap:.2f}",
                    "paper, V100": "" if paper is None else f"{paper}",
                    "": "unsteady" if case["unsteady"] else "",
                }
            )
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    widths = [max(len(text) for text in (name, *(x[name] for x in lines))) for name in columns]
    print()
    for line in ({name: name for name in columns}, *lines):
        cells = zip(columns, widths, strict=True)
        print("  ".join(f"{line[name]:>{width}}" for name, width in cells).rstrip())


def rows(report: dict) -> Iterator[dict]:
    """Those of the CSV: one for each stage of each variant of the cases that are complete."""
    for case in report["cases"]:
        if case["interrupted"]:
            continue
        known = report | case | {"input": "{}x{}".format(*case["input"])}
        known["unsteady"] = "; ".join(case["unsteady"])
        for entry in case["variants"]:
            memory = entry["working_memory"]
            known["working_mib"] = None if memory is None else memory / 2**20
            for stage, numbers in entry["stages"].items():
                yield known | entry | numbers | {"stage": stage}


def draw_latency(report: dict) -> Image.Image:
    """A bar for each variant of each case, stacked of its stages' medians."""
    groups, paper = [], report["protocol"] == "paper"
    for case in report["cases"]:
        bars = []
        for entry in case["variants"]:
            stages = dict(entry["stages"])
            end = stages.pop(END_TO_END)
            parts = {
                stage: row["median_ms"]
                for stage, row in stages.items()
                if not (paper and stage in OUTSIDE_PAPER)
            }
            digits = max(0, 2 - math.floor(math.log10(end["median_ms"])))
            ratio = "" if end["ratio"] is None else f", {end['ratio']:.2f}x"
            note = f"{end['median_ms']:.{digits}f} ms, {end['fps']:.3g} images/s{ratio}"
            bars.append(Bar(entry["variant"], parts, end["median_ms"], note))
        height, width = case["input"]
        groups.append(Group(f"{case['model']}, batch {case['batch']}, {height} x {width}", bars))
    where = report["device"]
    if report["device"] == "cpu":
        where = f"{report['machine']}, {report['threads']} in use"
    return draw_bars(groups, f"Latency on {where}", "milliseconds, medians", END_TO_END)
