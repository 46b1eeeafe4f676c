"""What a model costs by its structure, and in memory; a model to measure without weights."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastinst.config import ModelConfig
from fastinst.model import FastInst, create_model
from fastinst.preprocess import preprocess

# Of our operators, from their arguments' shapes; the counter knows PyTorch's own.
FLOPS = {
    torch.ops.fastinst.deform_conv2d: (
        lambda input, offset, weight, *_, out_shape: 2 * out_shape.numel() * weight[1:].numel()
    ),
    torch.ops.fastinst.masked_cross_attention: lambda q, k, *_, out_shape: 4 * q.numel() * k[2],
    torch.ops.fastinst.attention_to_queries: lambda q, k, *_, out_shape: 4 * q.numel() * k[2],
    torch.ops.fastinst.attention_mask: lambda e, x, *_, out_shape: 2 * e.numel() * x[1],
}


def count_cost(config: ModelConfig, resized: list[Tensor]) -> dict:
    """The model's "parameters", its "flops" on these images, [3, h, w], and their "input" size.

    FLOPs are those of convolutions and matrix products, a multiply-add being two. They are the
    plain model's, by whatever means it is run.
    """
    # The meta device computes shapes only, so that every operator is seen, the same way whatever
    # kernel a real device chooses.
    with torch.device("meta"), torch.inference_mode():
        twin = FastInst(config).eval()
        images = [image.to("meta") for image in resized]
        batch, _ = preprocess(images, config, torch.device("meta"), torch.float32)
        with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
            twin(batch)
    return {
        "input": list(batch.shape[2:]),
        "parameters": sum(parameter.numel() for parameter in twin.parameters()),
        "flops": counter.get_total_flops(),
    }


def random_model(name: str) -> FastInst:
    """A model whose weights, though random, take the time of trained ones.

    Most of the network does not care what it computes. But fresh weights overflow float16 in
    ResNet-101, deform no convolution, and give few queries the 100 best (query, class) pairs, so
    that few masks are read out, each many times. Here every query has one of the pairs.
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


def working_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that a call needs beyond what lies there before, its result included.

    Of tensors on a GPU; of the whole process on the CPU, where only Linux can tell: else None.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # what is freed, but still this process's, would hide the need
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, proc_pid_clear_refs(5)
    except OSError:
        return None
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    """In bytes, of VmRSS (now) or VmHWM (the most)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) * 1024
