"""The ways from images to instances that are measured side by side."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastinst.config import ModelConfig
from fastinst.data.augment import resize_shortest_edge
from fastinst.device import choose_dtype
from fastinst.model import FastInst
from fastinst.ops.kernels import definitions_only
from fastinst.predictor import Predictor
from fastinst.preprocess import preprocess
from fastinst.results import postprocess
from fastinst.rivals.release_network import release_network, release_postprocess

Sizes = list[tuple[int, int]]

# What each is, for the help; "definitions" are the operators without compiled kernels.
VARIANTS = {
    "release": "what the authors' release does, in float32: the baseline of ratios",
    "plain": "the model as it was trained, in float32",
    "plain-definitions": "the same with every operator's definition instead of its kernel",
    "engine-float32": "the model prepared by `fastinst.engine`",
    "engine-definitions": "the same with every operator's definition instead of its kernel",
    "engine-bfloat16": "the model prepared by `fastinst.engine`",
    "engine-float16": "the model prepared by `fastinst.engine`",
}


@dataclass(frozen=True)
class Variant:
    """One way: its steps, and those from resized images to results in one go.

    Args:
        resize: one image, uint8 [H, W, 3], to the network's size, uint8 [3, h, w]
        preprocess: resized images to a batch and their (height, width) in it
        network: a batch to outputs, with a `config`; with `stages` as `FastInst.stages`, or
            without; and with `describe`, how it computes in words, or without
        read_out: outputs, sizes in the batch and sizes of the originals to results on the device
        infer: resized images and the sizes of the originals to results on the device
        predictor: what computes all that, unless it is the release
        scope: in which everything has to run
    """

    name: str
    dtype: str
    device: torch.device
    resize: Callable[[np.ndarray], Tensor]
    preprocess: Callable[[list[Tensor]], tuple[Tensor, Sizes]]
    network: Callable[[Tensor], dict[str, Tensor]]
    read_out: Callable[[dict[str, Tensor], Sizes, Sizes], list[Any]]
    infer: Callable[[list[Tensor], Sizes], list[Any]]
    predictor: Predictor | None = None
    scope: Callable[[], AbstractContextManager] = contextlib.nullcontext

    def stages(self, originals: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
        """All of the work; yields each stage's name as it ends, with its result."""
        resized = [self.resize(image) for image in originals]
        yield "resize", resized
        batch, sizes = self.preprocess(resized)
        yield "preprocess", batch
        if hasattr(self.network, "stages"):
            for stage, outputs in self.network.stages(batch):
                yield stage, outputs
        else:
            outputs = self.network(batch)
            yield "network", outputs
        found = self.read_out(outputs, sizes, [image.shape[:2] for image in originals])
        yield "read-out", found
        yield "download", download(found)

    def describe(self) -> str:
        """How the network computes; asked for inside `scope`."""
        if hasattr(self.network, "describe"):
            return self.network.describe()
        how = "eager PyTorch" if isinstance(self.network, nn.Module) else "an exported file"
        return f"{self.dtype} on {self.device}, {how}"


def download(found: list[Any]) -> list[Any]:
    """Results in host memory."""
    return [
        tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.to("cpu")
        for result in found
    ]


def default_variants(device: torch.device, config: ModelConfig) -> list[str]:
    """All that are worth comparing on a device: with the 16 bits that it is fastest in, if any."""
    best = str(choose_dtype("auto", device)).removeprefix("torch.")
    names = [name for name in VARIANTS if not name.endswith("float16") or name == f"engine-{best}"]
    return names if config.is_fastinst else [name for name in names if name != "release"]


def make_variant(name: str, model: FastInst, device: torch.device) -> Variant:
    """One of VARIANTS, with the weights of a float32 model."""
    if name == "release":
        return _release_variant(model, device)
    kind, _, how = name.partition("-")
    scope = contextlib.nullcontext
    if how in ("", "definitions"):
        scope = functools.partial(definitions_only, device.type) if how else scope
        how = "float32"
    return _predictor_variant(name, Predictor(model, device, how, engine=kind == "engine"), scope)


def artefact_variant(path: str, device: torch.device) -> Variant:
    """What export.py has written to a file."""
    predictor = Predictor(path, device)
    # Predictors know the dtype of its input, which is float32 whatever it computes in.
    return replace(
        _predictor_variant("artefact", predictor), dtype=predictor.network.metadata.dtype
    )


def _predictor_variant(
    name: str,
    predictor: Predictor,
    scope: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> Variant:
    to = (predictor.config, predictor.device, predictor.dtype)
    return Variant(
        name,
        str(predictor.dtype).removeprefix("torch."),
        predictor.device,
        predictor.resize,
        lambda images: preprocess(images, *to),
        predictor.network,
        postprocess,
        predictor.infer,
        predictor,
        scope,
    )


def _release_variant(model: FastInst, device: torch.device) -> Variant:
    network = release_network(model).to(device)
    edges = (model.config.test_short_edge, model.config.test_max_edge)

    def resize(image: np.ndarray) -> Tensor:
        return torch.from_numpy(resize_shortest_edge(image, *edges)).permute(2, 0, 1)

    def infer(resized: list[Tensor], sizes: Sizes) -> list[tuple[Tensor, ...]]:
        batch, image_sizes = network.preprocess(resized)
        return release_postprocess(network(batch), image_sizes, sizes)

    return Variant(
        "release",
        "float32",
        device,
        resize,
        network.preprocess,
        network,
        release_postprocess,
        infer,
    )
