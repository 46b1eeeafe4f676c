"""What a training step costs, beside the straight one: operations, synchronisations, time.

    python -m fastinst.step_timing --model fastinst-d3-r50-640 --batch 4 --height 608 --width 800

The straight step (`fastinst.rivals.straight_loss`) has the same model, its operators in plain
PyTorch, frozen batch norms as passes of their own, losses taken image by image and output by
output, and an AdamW that is fused on GPUs only. Random pixels, fresh weights, TF32 off.
Operations are calls that compute: neither views nor allocations. On a GPU synchronisations are
those that CUDA reports; on the CPU, the calls of which one knows that they would wait for a GPU
(`.cpu()`, `.item()`, `nonzero`).
"""

import argparse
import contextlib
import copy
import importlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastinst import backbone, ops
from fastinst.config import list_models, make_config
from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.files import check_output_file, write_whole
from fastinst.model import FastInst, create_model
from fastinst.records import describe_machine, format_rows, print_machine, read_rows
from fastinst.rivals.straight_loss import straight_loss
from fastinst.timing import mark, milliseconds, synchronize
from fastinst.training.optimizer import parameter_groups

PHASES = ("forward and loss", "backward", "optimizer")
CSV_HEADER = (
    "date,machine,device,torch,threads,commit,command,model,batch,height,width,objects,"
    "step,phase,operations,synchronisations,median_ms,p95_ms,ratio"
)
# Operators that the straight step has in plain PyTorch, with autograd's own gradients.
PLAIN = ("attention_to_queries", "linear", "masked_cross_attention", "select_queries")
# They compute nothing. Beside them, views.
IDLE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

# Yields after each of PHASES.
Step = Callable[[], Iterator[None]]


def main() -> int:
    args = parse_arguments()
    device = choose_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"cannot time {device.type!r}; use --device cpu or --device cuda")
    if args.csv:
        check_output_file(args.csv)
    text = read_rows(args.csv, CSV_HEADER)
    torch.backends.fp32_precision = "ieee"  # no TF32
    report = describe_machine(device) | {
        name: getattr(args, name) for name in ("model", "batch", "height", "width", "objects")
    }
    print_machine(report)
    steps = make_steps(args.model, args.batch, args.height, args.width, args.objects, device)
    counts = {name: count(step, device) for name, step in steps.items()}
    rows = list(summarize(counts, measure(steps, device, args.rounds)))
    print(
        f"\n{'step':10}{'phase':18}{'operations':>11}{'waits':>7}{'p50 ms':>10}{'p95':>10}{'x':>7}"
    )
    for row in rows:
        print(
            f"{row['step']:10}{row['phase']:18}{row['operations']:11}{row['synchronisations']:7}"
            f"{row['median_ms']:10.1f}{row['p95_ms']:10.1f}{row['ratio']:7.2f}"
        )
    if args.csv:
        with write_whole(args.csv) as file:
            file.write((text + format_rows((report | row for row in rows), CSV_HEADER)).encode())
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    fastinst = [name for name in list_models() if make_config(name).is_fastinst]
    add("--model", choices=fastinst, default="fastinst-d3-r50-640")
    add("--batch", type=int, default=4, help="images")
    add("--height", type=int, default=608, help="of the images")
    add("--width", type=int, default=800)
    add("--objects", type=int, default=7, help="in each image")
    add("--rounds", type=int, default=5, help="steps of each kind, in turn, after one to warm up")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--csv", type=Path, help="append a row for every step and phase to this file")
    args = parser.parse_args()
    for name in ("batch", "height", "width", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be positive")
    if args.objects < 0:
        parser.error("--objects must not be negative")
    return args


def make_steps(
    name: str, batch: int, height: int, width: int, objects: int, device: torch.device
) -> dict[str, Step]:
    """Training steps on the same images, each with a model of its own."""
    torch.manual_seed(0)
    model = create_model(name).train()
    for key, value in model.state_dict().items():
        if key.endswith("bn3.weight"):
            value.fill_(0.2)  # fresh weights overflow in ResNet-101
    models = [model.to(device), copy.deepcopy(model).to(device)]
    images = list(torch.randint(256, (batch, 3, height, width), dtype=torch.uint8))
    straight, present = [], []
    for _ in images:
        target = random_target(objects, height, width, model.config.num_classes)
        straight.append(target)
        present.append({**target, "masks": ops.pack_bits(target["masks"]), "seed": len(present)})

    def straight_step() -> Iterator[None]:
        with plain_operators():
            yield from training_step(models[0], optimizers[0], images, straight, straight_loss)

    def present_step() -> Iterator[None]:
        yield from training_step(models[1], optimizers[1], images, present, FastInst.loss)

    optimizers = [
        torch.optim.AdamW(parameter_groups(model, 1e-6, 1e-7, 0.05), fused=fused)
        for model, fused in zip(models, (device.type == "cuda", True), strict=True)
    ]
    return {"straight": straight_step, "present": present_step}


def random_target(objects: int, height: int, width: int, num_classes: int) -> dict[str, Tensor]:
    """Ellipses of all sizes at random places."""
    y, x, b, a = (torch.rand(4, objects, 1, 1) + 0.05).unbind()
    row = torch.arange(height)[:, None] / height
    column = torch.arange(width) / width
    masks = ((row - y) / b) ** 2 + ((column - x) / a) ** 2 < 0.1
    return {"labels": torch.randint(num_classes, (objects,)), "masks": masks}


def training_step(
    model: FastInst,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[dict[str, Any]],
    loss: Callable[..., dict[str, Tensor]],
) -> Iterator[None]:
    batch, _ = model.preprocess(images)
    batch = batch.to(memory_format=torch.channels_last)
    losses = loss(model, batch, targets)
    yield
    optimizer.zero_grad()
    sum(losses.values()).backward()
    yield
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    values = torch.stack([*losses.values(), norm]).detach().cpu().tolist()
    if not all(map(math.isfinite, values)):
        raise InputError("the losses are not finite with random weights; try another model")
    yield


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """The model's operators by their definitions, as PyTorch runs and differentiates them."""
    plain = {n: importlib.import_module(f"fastinst.ops.{n}").definition for n in PLAIN}
    with mock.patch.multiple(ops, **plain):
        with mock.patch.object(backbone, "Normalised", NormalisedApart):
            yield


class NormalisedApart(backbone.Normalised):
    def __init__(self, _: nn.Module):
        """Nothing is folded ahead of the convolutions."""

    def normalise(self, conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(norm, backbone.FrozenBatchNorm2d):
            return norm(conv(x))
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.batch_norm(conv(x), *statistics, eps=norm.eps)


class OperationCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        is_view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        name = schema.name.removeprefix("aten::")
        if not is_view and name not in IDLE and not name.startswith("profiler::"):
            self.calls[name] += 1
        return function(*args, **(kwargs or {}))


class DownloadCounter(TorchFunctionMode):
    """`.cpu()` calls, which do nothing that could be seen below if the tensor is on the CPU."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += function is Tensor.cpu
        return function(*args, **(kwargs or {}))


def count(step: Step, device: torch.device) -> list[tuple[int, int]]:
    """(operations, synchronisations) of each of PHASES, after a step that makes what stays."""
    for _ in step():
        pass
    totals = []
    phases = step()
    for phase in PHASES:
        with contextlib.ExitStack() as stack:
            operations = stack.enter_context(OperationCounter())
            downloads = stack.enter_context(DownloadCounter())
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            if device.type == "cuda":
                warnings.simplefilter("always")
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
                torch.cuda.set_sync_debug_mode("warn")
            next(phases)
        waits = downloads.calls
        if phase != PHASES[-1]:  # whose `.item()` reads AdamW's counters, which are on the host
            waits += sum(operations.calls[name] for name in WAITING)
        if device.type == "cuda":
            waits = sum("synchronizing" in str(warning.message) for warning in caught)
        totals.append((operations.calls.total(), waits))
    return totals


def measure(
    steps: dict[str, Step], device: torch.device, rounds: int
) -> dict[str, list[list[float]]]:
    """Milliseconds of each of PHASES in `rounds` steps; the kinds in turn, A B A B."""
    times = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            synchronize(device)
            marks = [mark(device)] + [mark(device) for _ in step()]
            synchronize(device)
            if number > 0:
                pairs = zip(marks, marks[1:], strict=False)
                times[name].append([milliseconds(*pair) for pair in pairs])
    return times


def summarize(
    counts: dict[str, list[tuple[int, int]]], times: dict[str, list[list[float]]]
) -> Iterator[dict]:
    """A row for each step and phase, and for each whole step; ratio is the straight one's time."""
    medians = {}
    for name, runs in times.items():
        phases = [*PHASES, "whole step"]
        numbers = np.array([[*run, sum(run)] for run in runs])
        tallies = [*counts[name], tuple(map(sum, zip(*counts[name], strict=True)))]
        for phase, column, tally in zip(phases, numbers.T, tallies, strict=True):
            median, p95 = np.percentile(column, (50, 95)).tolist()
            first = medians.setdefault(phase, median)
            yield {
                "step": name,
                "phase": phase,
                "operations": tally[0],
                "synchronisations": tally[1],
                "median_ms": median,
                "p95_ms": p95,
                "ratio": first / median if median else math.nan,
            }


if __name__ == "__main__":
    run(main)
