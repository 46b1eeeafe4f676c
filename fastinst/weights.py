"""Weights: checkpoints, the authors' release and ImageNet backbones, into a model or a file."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinst.config import PRESETS, ModelConfig
from fastinst.data.coco_classes import COCO_CLASSES
from fastinst.errors import InputError
from fastinst.files import write_whole
from fastinst.model import FastInst, create_model
from fastinst.official import BATCH_COUNTER, fit, official_names
from fastinst.pickles import find_tensors, read_file
from fastinst.release import RELEASE_FILES, download

FORMAT = "fastinst/1"

# The layers with a row per class and one for no-object.
_CLASS_LAYERS = re.compile(
    r"queries\.classifier\.|decoder\.heads\.\d+\.class_mlp\.layers\.2\.|"
    r"decoder\.head\.class_mlp\.layers\.0\."
)
# Of torchvision, timm, detectron2 and Caffe: what a file of a backbone alone has.
_FIRST_CONVOLUTIONS = {"conv1.weight", "conv1.0.weight", "stem.conv1.weight", "conv1_w"}
_OFFSETS = ("conv2.offset.weight", "conv2.offset.bias")


class CheckpointInfo(NamedTuple):
    """What a model's weights are of.

    class_names, category_ids: by label; None if unknown
    is_thing: by label, as `Dataset` has it; None if all are, or unknown
    """

    name: str
    class_names: tuple[str, ...] | None
    category_ids: tuple[int, ...] | None
    is_thing: tuple[bool, ...] | None = None


class _Weights(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    checkpoint: dict[str, Any] | None  # of `read_checkpoint`, if the file is one

    @property
    def backbone(self) -> bool:
        return not _FIRST_CONVOLUTIONS.isdisjoint(self.tensors)

    @property
    def official(self) -> bool:
        return any(name.startswith("sem_seg_head.") for name in self.tensors)


def save_checkpoint(
    path: Path | str,
    model: FastInst,
    class_names: Sequence[str] | None,
    category_ids: Sequence[int] | None,
    training: dict[str, Any] | None = None,
    former: Path | str | None = None,
    is_thing: Sequence[bool] | None = None,
) -> None:
    """Writes the model, its configuration and its classes to one file, whole or not at all.

    Args:
        class_names, category_ids: by label, one for each of the model's classes
        training: what resuming needs: tensors, numbers, strings, and dicts, lists and tuples of
            them; `read_checkpoint` refuses any other object
        former: where the file that `path` names until then is kept, as in `write_whole`
        is_thing: by label, whether a class is of objects; None if all are

    Raises:
        InputError: the file cannot be written.
    """
    checkpoint = {
        "format": FORMAT,
        "model": model.state_dict(),
        "config": dataclasses.asdict(model.config),
        "class_names": None if class_names is None else list(class_names),
        "category_ids": None if category_ids is None else list(category_ids),
        "is_thing": None if is_thing is None else list(is_thing),
    }
    if training is not None:
        checkpoint["training"] = training
    with write_whole(path, former) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # PyTorch hides that the disk is full
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """What `save_checkpoint` wrote: format, model, config, class_names, category_ids, is_thing,
    training.

    Raises:
        InputError: the file cannot be read or `save_checkpoint` did not write it.
    """
    return _check_checkpoint(path, read_file(path))


def load_weights(model: FastInst, source: Path | str, progress: bool = True) -> list[str]:
    """Copies weights into `model`; all of them or, with an error, none.

    Args:
        source: a file of a whole model (of `save_checkpoint`; a checkpoint of the authors' code; a
            bare state dict with the names of either), one of an ImageNet backbone (torchvision's
            resnet18, resnet50, resnet101; timm's resnet50d; detectron2's R-50.pkl and R-101.pkl
            of torchvision's), or a name of `RELEASE_FILES`, whose file is downloaded to PyTorch's
            hub folder unless it is there
        progress: show the download's progress

    Returns:
        The names that stay as they were. Of a whole model these are the class layers if the file
        has another number of classes than the model, else none. Of a backbone, whose 3x3 weights
        go into deformable convolutions too, everything else and the convolutions of the offsets.

    Raises:
        InputError: the file cannot be had or read, or is of another model.
    """
    weights = _read_weights(_find(source, progress))
    return (_load_backbone if weights.backbone else _load)(model, weights)


def load_model(
    source: Path | str, device: torch.device | str = "cpu"
) -> tuple[FastInst, CheckpointInfo]:
    """The model that the weights at `source` are of, in evaluation mode.

    Args:
        source: as in `load_weights`, except for a bare state dict with this package's names,
            which does not say enough about its model

    Raises:
        InputError: the file cannot be had or read, or its model is unknown.
    """
    weights = _read_weights(_find(source, progress=True))
    checkpoint = weights.checkpoint or {}
    if checkpoint:
        model = _restore(weights.path, checkpoint["config"])
    elif found := _recognise(weights):
        name, num_classes = found
        model = create_model(name, num_classes=num_classes)
    else:
        raise InputError(
            f"{weights.path} does not say which model it is of, and it is none of the released "
            f"ones; make the model with fastinst.create_model and use fastinst.load_weights"
        )
    _load(model, weights)
    class_names, category_ids = checkpoint.get("class_names"), checkpoint.get("category_ids")
    if weights.official and model.config.num_classes == len(COCO_CLASSES):
        class_names, category_ids = COCO_CLASSES.values(), COCO_CLASSES.keys()
    classes = (class_names, category_ids, checkpoint.get("is_thing"))
    by_label = (None if values is None else tuple(values) for values in classes)
    return model.to(device).eval(), CheckpointInfo(model.config.name, *by_label)


def _find(source: Path | str, progress: bool) -> Path:
    """The file at `source`, or the one of the released model of that name."""
    if source in RELEASE_FILES:
        return download(source, progress)
    if source in PRESETS:
        raise InputError(
            f"{source} has no published weights; train it, or name a checkpoint of it or one of "
            f"{', '.join(RELEASE_FILES)}"
        )
    if not Path(source).exists():
        raise InputError(
            f"{source}: no such file, and no released model; those are {', '.join(RELEASE_FILES)}"
        )
    return Path(source)


def _read_weights(path: Path | str) -> _Weights:
    content = read_file(path)
    checkpoint = _check_checkpoint(path, content) if _is_checkpoint(content) else None
    return _Weights(Path(path), find_tensors(path, content), checkpoint)


def _is_checkpoint(content: Any) -> bool:
    return isinstance(content, dict) and str(content.get("format")).startswith("fastinst/")


def _check_checkpoint(path: Path | str, content: Any) -> dict[str, Any]:
    if not _is_checkpoint(content):
        raise InputError(f"{path} is not a checkpoint that fastinst has written")
    if content["format"] != FORMAT:
        raise InputError(
            f"{path} has the format {content['format']!r}, not {FORMAT!r}: it was written by "
            f"another version of fastinst; read it with that one"
        )
    for key in ("model", "config"):
        if not isinstance(content.get(key), dict):
            raise InputError(f"{path} is a checkpoint without its {key!r}")
    for key, kind in (("class_names", str), ("category_ids", int), ("is_thing", bool)):
        values, count = content.get(key), content["config"].get("num_classes")
        fits = isinstance(values, list) and all(isinstance(value, kind) for value in values)
        if values is not None and not (fits and len(values) == count):
            raise InputError(f"{path}: its {key!r} do not fit its {count} classes")
    return content


def _restore(path: Path, config: dict[str, Any]) -> FastInst:
    unknown = set(config) - {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown:
        raise InputError(
            f"{path} has settings that this version of fastinst does not know: "
            f"{', '.join(sorted(map(str, unknown)))}; read it with the version that wrote it"
        )
    try:
        return FastInst(ModelConfig(**config))
    except (InputError, TypeError) as error:  # a TypeError where a field is missing
        raise InputError(f"{path}: {error}") from error


def _recognise(weights: _Weights) -> tuple[str, int] | None:
    """The released model that has just these parameters, and its number of classes."""
    for name in RELEASE_FILES if weights.official else ():
        with torch.device("meta"):
            names = official_names(create_model(name))
        if set(names.values()) == set(weights.tensors):
            return name, _count_classes(weights, names)
    return None


def _count_classes(weights: _Weights, names: dict[str, str]) -> int:
    """0 if the file does not tell."""
    for ours, theirs in names.items():
        if _CLASS_LAYERS.match(ours) and ours.endswith("bias") and theirs in weights.tensors:
            return weights.tensors[theirs].numel() - 1
    return 0


def _load(model: FastInst, weights: _Weights) -> list[str]:
    own = model.state_dict()
    names = official_names(model) if weights.official else {name: name for name in own}
    given = dict(weights.tensors)
    num_classes = _count_classes(weights, names)
    kept = []
    for ours, theirs in names.items():
        shape = (num_classes + 1, *own[ours].shape[1:])
        if _CLASS_LAYERS.match(ours) and theirs in given and shape == given[theirs].shape:
            if shape != own[ours].shape:
                kept.append(ours)
                given[theirs] = own[ours]
    fitted, problems = fit(own, names, given, optional=(BATCH_COUNTER,), most=5)
    if problems:
        raise InputError(
            f"{weights.path} is a checkpoint of another model, {_describe(weights, model.config)}, "
            f"not of {model.config.name} with {model.config.num_classes} classes; {problems}"
        )
    model.load_state_dict(own | fitted)
    return kept


def _load_backbone(model: FastInst, weights: _Weights) -> list[str]:
    path, tensors, _ = weights
    if "conv1_w" in tensors:
        raise InputError(
            f"{path} is MSRA's ResNet in Caffe's form, made for BGR images and with other "
            f"strides; use detectron2's ImageNetPretrained/torchvision/R-50.pkl (or R-101.pkl) or "
            f"torchvision's own file"
        )
    own = model.state_dict()
    names = {name: name for name in own}
    if "stem.conv1.weight" in tensors:  # detectron2's names, as the release's
        names = official_names(model)
    names = {k: v.removeprefix("backbone.") for k, v in names.items() if k.startswith("backbone.")}
    given = {k: v for k, v in tensors.items() if not k.startswith(("fc.", "stem.fc."))}
    fitted, problems = fit(own, names, given, optional=(BATCH_COUNTER, *_OFFSETS), most=5)
    if problems:
        raise InputError(f"{path} is no {model.config.backbone} of ImageNet; {problems}")
    model.load_state_dict(own | fitted)
    return [name for name in own if name not in fitted and not name.endswith(BATCH_COUNTER)]


def _describe(weights: _Weights, wanted: ModelConfig) -> str:
    if weights.checkpoint:
        config = weights.checkpoint["config"]
        of = f"{config.get('name')} with {config.get('num_classes')} classes"
        if config.get("name") != wanted.name:
            return of
        fields = dataclasses.asdict(wanted).items()
        others = [f"{k}={config[k]!r}" for k, v in fields if k in config and config[k] != v]
        return ", ".join([of, *others])
    found = _recognise(weights)
    return f"{found[0]} with {found[1]} classes" if found else "an unknown one"
