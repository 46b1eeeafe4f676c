"""What a module inside a model is given and what it makes of it, while the model sees an image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fastinst.errors import InputError
from fastinst.model import FastInst
from fastinst.predictor import Predictor


@dataclass(frozen=True)
class Observation:
    """Of a batch of one image.

    inputs, output: of the module
    image_size: (height, width) of the resized image, which lies at the top left of ...
    padded_size: (height, width) of the network's input
    """

    inputs: tuple
    output: Any
    image_size: tuple[int, int]
    padded_size: tuple[int, int]


def load_observable(source: str, device: str | None = None) -> Predictor:
    """A `Predictor` that runs the plain model; raises InputError as it does, and for a file that
    has no modules."""
    predictor = Predictor(source, device, engine=False)
    if not isinstance(predictor.network, FastInst):
        raise InputError(f"{source} is an exported file; name the checkpoint that it is from")
    return predictor


@torch.inference_mode()
def observe(predictor: Predictor, module: nn.Module, image: np.ndarray) -> Observation:
    """predictor: of `load_observable`; module: of its network; image: uint8 [H, W, 3]"""
    model, seen = predictor.network, []
    batch, (image_size,) = model.preprocess([predictor.resize(image)])
    hook = module.register_forward_hook(lambda _, *both: seen.append(both))
    try:
        model(batch)
    finally:
        hook.remove()
    ((inputs, output),) = seen
    return Observation(inputs, output, image_size, tuple(batch.shape[2:]))
