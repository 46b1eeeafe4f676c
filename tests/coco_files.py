"""COCO files of one or two images, to be found and read."""

import json
from pathlib import Path

from PIL import Image

from fastinst.data.coco import load_coco

HEIGHT, WIDTH = 20, 30
SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]


def coco(segmentations=(SQUARE,), **changes) -> dict:
    """One image, one annotation per segmentation, categories with a gap and out of order."""
    data = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"id": i + 1, "image_id": 5, "category_id": 9, "segmentation": segmentation}
            for i, segmentation in enumerate(segmentations)
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    return data | changes


def save_image(path: Path, height=HEIGHT, width=WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 100, 50)).save(path)


def load(folder: Path, data: object):
    json_path = folder / "data.json"
    json_path.write_text(data if isinstance(data, str) else json.dumps(data))
    save_image(folder / "a.jpg")
    return load_coco(json_path, folder)
