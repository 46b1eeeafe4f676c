"""A data set in any format that is understood: COCO, YOLO or Cityscapes."""

from pathlib import Path

from fastinst.data.cityscapes import is_cityscapes, load_cityscapes
from fastinst.data.coco import load_coco
from fastinst.data.coco_panoptic import load_coco_panoptic
from fastinst.data.dataset import Dataset, MissingSplit
from fastinst.data.layouts import MissingImages, find_coco, named_jsons
from fastinst.data.yolo import load_yolo
from fastinst.data.yolo_layouts import is_yolo
from fastinst.errors import InputError


def load_dataset(
    path: str | Path,
    split: str,
    image_folder: str | Path | None = None,
    task: str = "instance",
) -> Dataset:
    """Read and check a data set, whatever its format.

    path: its folder; or a COCO JSON, a YOLO data.yaml, a YOLO list of images (.txt)
    split: "train" or "val"; a COCO JSON and a list of images are taken for either
    image_folder: for COCO, where the images are, if that is not to be found out
    task: one of TASKS; for those with stuff, COCO's panoptic annotations or Cityscapes
    A folder with leftImg8bit or gtFine is Cityscapes; else one with COCO annotations named after
    the split is COCO; else one with a data.yaml or label files is YOLO.
    Raises MissingSplit if the data set has no such split, InputError for anything else that is
    wrong with it.
    """
    read, *arguments = _find(Path(path), split, image_folder, task)
    return read(*arguments)


def _find(path: Path, split: str, image_folder: str | Path | None, task: str) -> tuple:
    """What reads a data set, and its arguments: of a COCO JSON, this and its folder of images."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_dir():
        cityscapes = is_cityscapes(path)
        yolo = not cityscapes and not named_jsons(path, split) and is_yolo(path)
        coco = any(any(path.glob(place)) for place in ("*.json", "*/*.json"))
    else:
        cityscapes, yolo, coco = False, suffix in (".yaml", ".yml", ".txt"), suffix == ".json"
    if image_folder is not None and (cityscapes or yolo):
        raise InputError(f"{path}: a folder of images can be given for a COCO JSON only")
    if cityscapes:
        return load_cityscapes, path, split, task
    if coco and task != "instance":
        return load_coco_panoptic, path, split, image_folder
    if task != "instance":
        raise InputError(
            f"{path}: {task} segmentation needs COCO's panoptic annotations or Cityscapes"
        )
    if yolo:
        return load_yolo, path, split
    if coco:
        return load_coco, *find_coco(path, split, image_folder)
    raise InputError(
        f"{path}: {'nothing in it is' if path.is_dir() else 'this is not'} a data set in a known "
        "format. Known are\n"
        f"  COCO        annotations/instances_{split}.json and {split}/*.jpg, or the JSON itself\n"
        f"  Roboflow    {split}/_annotations.coco.json and {split}/*.jpg\n"
        f"  YOLO        images/{split}/*.jpg, labels/{split}/*.txt and data.yaml, or this itself\n"
        f"  Cityscapes  leftImg8bit/{split}/CITY/*.png and gtFine/{split}/CITY/*.png"
    )


def load_splits(
    path: str | Path,
    val_path: str | Path | None = None,
    image_folder: str | Path | None = None,
    task: str = "instance",
) -> tuple[Dataset, Dataset | None, str]:
    """The training set of a data set; its validation set or None, and why there is none.

    val_path: where the validation set is, if it is not to be looked for at `path`
    image_folder: as in `load_dataset`, of the training set; of the validation set too, unless its
        images are found without
    """
    train = load_dataset(path, "train", image_folder, task)
    itself = f"{train.source} is the training set"
    try:
        read, source, *more = _find(Path(val_path or path), "val", None, task)
        if read is load_coco and source == train.source and not val_path:
            return train, None, itself  # which need not be read again to be known
        val = read(source, *more)
    except MissingSplit as reason:
        if val_path:
            raise
        return train, None, str(reason)
    except MissingImages:
        if image_folder is None:
            raise
        val = load_dataset(val_path or path, "val", image_folder, task)
    if val.source == train.source and not val_path:
        return train, None, itself
    return train, val, ""
