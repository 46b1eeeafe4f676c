"""YOLO images and their labels."""

from pathlib import Path

from PIL import Image

from fastinst.data.yolo import load_yolo

HEIGHT, WIDTH = 20, 40

SQUARE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"


def add(root: Path, image: str, label: str | None, lines: str = SQUARE) -> None:
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / image)
    if label is not None:
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / label).write_text(lines)


def one(tmp_path, lines: str):
    """A data set of one image with these lines."""
    add(tmp_path, "images/a.jpg", "labels/a.txt", lines)
    return load_yolo(tmp_path, "train")
