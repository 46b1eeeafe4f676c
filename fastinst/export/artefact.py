"""Running exported files as if they were models."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinst.device import choose_device
from fastinst.errors import InputError
from fastinst.export.metadata import KEY, Metadata
from fastinst.export.onnx_file import require
from fastinst.export.program import OUTPUTS

# Of onnxruntime, by device.
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Artefact:
    """An exported network that takes what the model takes, and returns what it returns.

    config, class_names, category_ids, is_thing: of the model
    input_size: (height, width) of a file for one size, else None
    device: where batches are to be, and where results are
    dtype: that batches are to be in, float32 whatever the file computes in
    """

    dtype = torch.float32

    def __init__(
        self,
        program: Callable[[Tensor], tuple[Tensor, ...]],
        metadata: Metadata,
        device: torch.device,
    ):
        self._program = program
        self.metadata = metadata
        self.config = metadata.config
        self.class_names, self.category_ids = metadata.class_names, metadata.category_ids
        self.is_thing = metadata.is_thing
        self.input_size = None if metadata.dynamic else metadata.shape[1:]
        self.device = device
        statistics = torch.tensor([self.config.pixel_mean, self.config.pixel_std], device=device)
        self.mean, self.std = statistics.view(2, 3, 1, 1)

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """As `FastInst.forward`, for a batch of any number of normalised images.

        A batch smaller than the file's size is padded; so are the masks that it returns.

        Raises:
            ValueError: a batch larger than the file's size.
        """
        count, least_height, least_width = self.metadata.shape
        height, width = batch.shape[2:]
        if self.input_size is not None and (height > least_height or width > least_width):
            raise ValueError(
                f"this file was exported for images of up to {least_width} x {least_height} pixels "
                f"(width x height), got {width} x {height}"
            )
        missing = (max(0, least_width - width), max(0, least_height - height))
        padded = F.pad(batch.to(self.device, torch.float32), (0, missing[0], 0, missing[1]))
        images = (padded * self.std + self.mean).contiguous()
        parts = [self._run(part, count) for part in images.split(count or len(images))]
        outputs = map(torch.cat, zip(*parts, strict=True))
        return dict(zip(OUTPUTS, outputs, strict=False))

    def _run(self, images: Tensor, count: int | None) -> tuple[Tensor, ...]:
        """A batch of at most `count` by a file for just as many."""
        missing = (count or len(images)) - len(images)
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
        with torch.inference_mode():
            return tuple(output[: len(images)] for output in self._program(padded))


def load_artefact(path: Path | str, device: torch.device | str | None = None) -> Artefact:
    """The network in a file that `export.py` wrote.

    Args:
        path: NAME.onnx, which onnxruntime runs, or NAME.pt2, a program of `torch.export`. Load a
            .pt2 only from whom you trust: PyTorch's reader is not made for others'
        device: by default CUDA where there is one, and for ONNX an onnxruntime for it, else the CPU

    Raises:
        InputError: the file cannot be read, was not written by `export.py`, or cannot run here.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    is_onnx = Path(path).suffix.lower() == ".onnx"
    if is_onnx and device in (None, "auto") and not _runs_onnx("cuda"):
        device = "cpu"
    read = read_onnx if is_onnx else read_program
    return read(content, choose_device(device or "auto"), path)


def read_onnx(content: bytes, device: torch.device, source: object) -> Artefact:
    """The network in the bytes of an ONNX file, called `source` in errors."""
    onnxruntime = require("onnxruntime")
    if not _runs_onnx(device.type):
        raise InputError(f"{source}: the onnxruntime that is installed does not run on {device}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    settings = {"device_id": device.index or 0} if device.type == "cuda" else {}
    try:
        session = onnxruntime.InferenceSession(
            content, options, providers=[(PROVIDERS[device.type], settings)]
        )
    except Exception as error:  # its exceptions have no common class but this
        raise InputError(f"{source}: onnxruntime cannot load it: {error}") from error
    metadata = _metadata(session.get_modelmeta().custom_metadata_map, source)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {"images": images.cpu().numpy()})
        return tuple(torch.from_numpy(output).to(device) for output in outputs)

    return Artefact(run, metadata, device)


def read_program(content: bytes, device: torch.device, source: object) -> Artefact:
    """The network in the bytes of a .pt2 file, called `source` in errors."""
    texts = {KEY: ""}
    try:
        program = torch.export.load(io.BytesIO(content), extra_files=texts)
        if device.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, device)
    except Exception as error:  # anything, for a file that is not what it seems
        raise InputError(f"{source}: no program of torch.export: {error}") from error
    return Artefact(program.module(), _metadata(texts, source), device)


def _runs_onnx(device_type: str) -> bool:
    """Whether the onnxruntime that is installed has this device."""
    return PROVIDERS.get(device_type) in require("onnxruntime").get_available_providers()


def _metadata(texts: dict[str, str], source: object) -> Metadata:
    text = texts.get(KEY, "")
    return Metadata.from_json(text.decode() if isinstance(text, bytes) else text, source)
