"""What a training run will take, before it is started: steps and memory."""

import math
import os
from typing import NamedTuple

import numpy as np
import torch

from fastinst.config import ModelConfig
from fastinst.data.loader import TrainingImages
from fastinst.model import FastInst
from fastinst.targets import padded_size

# The peak of a training step, without the model, over what its passes keep for the gradients: 0.98
# to 1.29 for five models with ResNet-50 and 101 and sizes on the CPU, 1.6 with a small one on 16
# images, the losses and what a convolution works in being the rest.
PEAK = 1.3
AMP = 0.55  # what 16-bit autocast keeps, over what float32 does: 0.51 to 0.56 with D3-R50
BYTES_PER_PARAMETER = 16  # in float32: itself, its gradient and AdamW's two moments


class Forecast(NamedTuple):
    """What training takes and what there is for it.

    steps_per_epoch: optimizer steps
    height, width: of the largest batch to be expected, in pixels
    memory: bytes of one process, good to about 20 %
    available: bytes that the device has for it, None where that is not known
    """

    steps_per_epoch: int
    height: int
    width: int
    memory: int
    available: int | None


def forecast(
    images: TrainingImages,
    config: ModelConfig,
    batch_size: int,
    device: torch.device,
    amp: bool,
    parts: int = 1,
) -> Forecast:
    """For steps of `batch_size` images, computed in so many `parts`, 16-bit where `amp`."""
    height, width = largest_batch(images, batch_size)
    kept, parameters = kept_for_gradients(config, height, width)
    share = math.ceil(batch_size / parts)
    memory = BYTES_PER_PARAMETER * parameters + PEAK * share * kept * (AMP if amp else 1)
    steps = math.ceil(len(images) / batch_size)
    return Forecast(steps, height, width, int(memory), device_memory(device))


def largest_batch(images: TrainingImages, batch_size: int, batches: int = 100) -> tuple[int, int]:
    """The padded (height, width) of the largest of some random batches; no image is read."""
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(batches):
        records = [images.records[i] for i in rng.integers(len(images), size=batch_size)]
        drawn = [images.settings.draw(r.height, r.width, rng).size for r in records]
        sizes.append(padded_size(*map(max, zip(*drawn, strict=True))))
    return max(sizes, key=math.prod)


def kept_for_gradients(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    """Bytes that the float32 passes of a training step keep for one image, and all parameters.

    Counted on tensors without data, so it takes no memory and, with D3-R50, a second.
    """
    with torch.device("meta"):
        model = FastInst(config).train()
        batch = torch.empty(1, 3, height, width)
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, or its address could be another's later
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scene, queries = model.encode(batch)
        trace = model.decoder.trace(scene, queries)
        if config.mask_guided:
            shape = trace.masks[-1].shape[:2]
            attend = [
                torch.ones(*shape, math.prod(level.size), dtype=torch.bool, device="meta")
                for level in scene.levels
            ]
            model.decoder.guided(trace, scene, queries, attend)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return sum(storage.nbytes() for storage in kept.values()), parameters


def device_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, or that the machine has in all for a CPU, if it says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
