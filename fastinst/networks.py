"""Whatever names or is a model, to the network that a Predictor runs."""

import copy
import os
from pathlib import Path
from typing import Any

import torch

from fastinst.device import choose_device, choose_dtype
from fastinst.errors import InputError
from fastinst.model import FastInst
from fastinst.weights import CheckpointInfo, load_model

# What export.py writes.
ARTEFACTS = (".onnx", ".pt2")


def load_network(
    model: Any,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    engine: bool,
) -> tuple[Any, CheckpointInfo]:
    """The network, in evaluation mode, and what is known of its classes; see `Predictor`.

    Raises:
        InputError: a model, device or dtype that cannot be had.
    """
    info = None
    if isinstance(model, str | os.PathLike):
        if Path(model).suffix.lower() in ARTEFACTS:
            from fastinst.export.artefact import load_artefact  # what runs them is optional

            # It knows where what runs it can; what has been asked for it has, or raised.
            model, device = load_artefact(model, device), None
            classes = model.class_names, model.category_ids, model.is_thing
            info = CheckpointInfo(model.config.name, *classes)
        else:
            model, info = load_model(model)
            device = device or "auto"
    if not (callable(model) and hasattr(model, "config")):
        raise InputError(
            "a model is a FastInst, a checkpoint's path, the name of a released model or an "
            f"exported file, got {type(model).__name__}"
        )
    info = info or CheckpointInfo(model.config.name, None, None)
    if isinstance(model, FastInst):
        return (_prepared if engine else _plain)(model, device, dtype), info
    fits = device is None or choose_device(device) == model.device
    if not fits or (dtype is not None and choose_dtype(dtype, model.device) != model.dtype):
        raise InputError(f"{info.name} as it is given takes {model.dtype} on {model.device} only")
    return model, info


def _prepared(model: FastInst, device, dtype) -> Any:
    from fastinst.engine import prepare
    from fastinst.engine.graphs import GraphedNetwork

    device = choose_device(device or "auto")
    network = prepare(model, device, choose_dtype(dtype or "auto", device))
    return GraphedNetwork(network) if device.type == "cuda" else network


def _plain(model: FastInst, device, dtype) -> FastInst:
    """The model itself if it is as wanted, else a copy that is."""
    device = model.device if device is None else choose_device(device)
    dtype = model.dtype if dtype is None else choose_dtype(dtype, device)
    if (device, dtype, False) == (model.device, model.dtype, model.training):
        return model
    return copy.deepcopy(model).to(device, dtype).eval()
