"""What is known of a measurement beside its numbers, and the CSV files that keep both."""

import csv
import datetime
import io
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from fastinst import ops
from fastinst.errors import InputError


def describe_machine(device: torch.device) -> dict:
    """Date, command, commit, machine and software of this run."""
    cuda = device.type == "cuda"
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    # With "-dirty" if tracked files have changed since; empty without git.
    git = f"git -C {shlex.quote(str(Path(__file__).parent))} describe --always --dirty --abbrev=7"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": describe_command(sys.argv),
        "commit": subprocess.getoutput(f"{git} --exclude='*' 2>/dev/null"),
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "ops": ops.active_kernels(device.type),
    }


def describe_command(argv: list[str]) -> str:
    """The command line as anyone would repeat it: without the folders of this machine."""
    program = Path(argv[0])
    package = Path(__file__).parent
    module = program.is_absolute() and program.is_relative_to(package)
    start = ["-m", f"{package.name}.{program.stem}"] if module else [program.name]
    arguments = [Path(text).name if os.path.isabs(text) else text for text in argv[1:]]
    return shlex.join(["python", *start, *arguments])


def print_machine(report: dict) -> None:
    for key in ("machine", "device", "threads", "commit"):
        print(f"{key}: {report[key]}")
    print(f"torch: {report['torch']}, CUDA {report['cuda']}, cuDNN {report['cudnn']}")
    for kind in ("compiled", "reference"):
        names = [name for name, kernel in report["ops"].items() if kernel == kind]
        if names:
            print(f"{kind} ops: {', '.join(names) if len(names) < len(report['ops']) else 'all'}")
    if report["load_average"] > os.cpu_count() / 2:
        load, advice = report["load_average"], "expect better times on an idle machine"
        print(f"warning: the load average is {load:.1f}; {advice}", file=sys.stderr)


def peak_memory(device: torch.device) -> dict:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        return {"peak_memory_bytes": peak, "peak_memory_of": "tensors on the GPU"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "the process so far"}


def read_rows(path: Path | None, columns: str) -> str:
    """The text of a CSV with these columns that rows can be appended to.

    Raises InputError for a file with other columns.
    """
    if path is None or not path.is_file():
        return columns + "\n"
    text = path.read_text()
    if text.partition("\n")[0] != columns:
        raise InputError(f"{path} does not have the columns {columns}; name another file")
    return text


def format_rows(rows: Iterable[dict], columns: str) -> str:
    """Rows of a CSV, with numbers rounded to 4 digits; what is no column is left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns.split(","), extrasaction="ignore", lineterminator="\n")
    for row in rows:
        writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()
