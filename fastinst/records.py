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
    # With "-dirty" if tracked files have changed since; empty without git.
    git = f"git -C {shlex.quote(str(Path(__file__).parent))} describe --always --dirty --abbrev=7"
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": describe_command(sys.argv),
        "commit": subprocess.getoutput(f"{git} --exclude='*' 2>/dev/null"),
        "machine": f"{_cpuinfo('model name') or platform.machine()}, {os.cpu_count()} cores",
        "isa": _instruction_sets(),
        "governor": governor.read_text().strip() if governor.exists() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "gpu": describe_gpu(device) if cuda else None,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "libraries": _libraries(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "ops": ops.active_kernels(device.type),
    }


def query_gpu(device: torch.device, columns: str) -> subprocess.Popen | None:
    """nvidia-smi's answer about a GPU, to be read from its output; None without nvidia-smi."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", "-i", uuid, f"--query-gpu={columns}", "--format=csv,noheader"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    try:
        return subprocess.Popen(command, **pipes)
    except OSError:
        return None


def describe_gpu(device: torch.device) -> dict[str, str]:
    """What nvidia-smi knows of a GPU: empty without it."""
    columns = ("driver_version", "power.limit", "clocks.max.sm", "temperature.gpu")
    query = query_gpu(device, ",".join(columns))
    values = query.communicate()[0].strip().split(", ") if query else []
    return dict(zip(columns, values, strict=True)) if len(values) == len(columns) else {}


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{field}\s*: (.*)", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else ""


def _instruction_sets() -> str:
    """What PyTorch's kernels use of the CPU, and what it has beside that for 16-bit products."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    wide = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimdhp", "sve", "bf16")
    present = [flag for flag in wide if flag in flags]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *present])


def _libraries() -> str:
    """Those of matrix products and convolutions that PyTorch was built with."""
    text = torch.__config__.show()
    found = (
        ("oneMKL", re.search(r"Math Kernel Library Version (\d[\d.]*)", text)),
        ("OpenBLAS", re.search(r"OpenBLAS.*?(\d+\.[\d.]+)", text)),
        ("oneDNN", re.search(r"MKL-DNN v([\d.]+)", text)),
    )
    return ", ".join(f"{name} {match[1]}" for name, match in found if match)


def describe_command(argv: list[str]) -> str:
    """The command line as anyone would repeat it: without the folders of this machine."""
    program = Path(argv[0])
    package = Path(__file__).parent
    module = program.is_absolute() and program.is_relative_to(package)
    start = ["-m", f"{package.name}.{program.stem}"] if module else [program.name]
    arguments = [Path(text).name if os.path.isabs(text) else text for text in argv[1:]]
    return shlex.join(["python", *start, *arguments])


def print_machine(report: dict) -> None:
    clock = f", governor {report['governor']}" if report["governor"] else ""
    print(f"machine: {report['machine']}, {report['isa']}{clock}, {report['system']}")
    gpu = "".join(f", {name} {value}" for name, value in (report["gpu"] or {}).items())
    print(f"device: {report['device']}{gpu}")
    for key in ("threads", "commit"):
        print(f"{key}: {report[key]}")
    cuda = f", CUDA {report['cuda']}, cuDNN {report['cudnn']}" if report["cuda"] else ""
    print(f"torch: {report['torch']}, Python {report['python']}, {report['libraries']}{cuda}")
    for kind in ("compiled", "reference"):
        names = [name for name, kernel in report["ops"].items() if kernel == kind]
        if names:
            print(f"{kind} ops: {', '.join(names) if len(names) < len(report['ops']) else 'all'}")
    if report["load_average"] > os.cpu_count() / 2:
        load, advice = report["load_average"], "expect better times on an idle machine"
        print(f"warning: the load average is {load:.1f}; {advice}", file=sys.stderr)


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
