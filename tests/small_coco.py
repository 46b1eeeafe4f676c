"""A tiny data set of coloured rectangles, as COCO or YOLO, and a model that finds those."""

import json
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastinst.preprocess import preprocess
from fastinst.weights import CheckpointInfo

NAMES = ("red", "green", "blue")
CATEGORY_IDS = (3, 7, 20)


def polygon(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_coco(folder, rectangles, size=(64, 96), names=NAMES, category_ids=CATEGORY_IDS):
    """Write folder/val.json and folder/val/N.png.

    rectangles: per image a list of (label, left, top, right, bottom), in multiples of 8, so that
        the masks of `ColourModel` are exact but for their corners
    """
    (folder / "val").mkdir(parents=True)
    images, annotations = [], []
    for number, objects in enumerate(rectangles, start=1):
        pixels = np.zeros((*size, 3), np.uint8)
        for label, left, top, right, bottom in objects:
            pixels[top:bottom, left:right, label] = 255
            annotations.append(
                {
                    "id": len(annotations),  # from 0, which pycocotools alone gets wrong
                    "image_id": number,
                    "category_id": category_ids[label],
                    "segmentation": polygon(left, top, right, bottom),
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / "val" / f"{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name} for i, name in zip(category_ids, names, strict=True)
        ],
    }
    (folder / "val.json").write_text(json.dumps(content))
    return folder / "val.json"


def write_yolo(folder, rectangles, size=(64, 96), names=NAMES):
    """The same as folder/images/val/N.png, folder/labels/val/N.txt and folder/data.yaml."""
    write_coco(folder, rectangles, size)
    (folder / "val.json").unlink()
    (folder / "images").mkdir()
    (folder / "val").rename(folder / "images" / "val")
    (folder / "labels" / "val").mkdir(parents=True)
    for number, objects in enumerate(rectangles, start=1):
        lines = []
        for label, *rectangle in objects:
            (points,) = polygon(*rectangle)
            fractions = [x / size[1 - i % 2] for i, x in enumerate(points)]
            lines.append(" ".join(map(str, (label, *fractions))))
        (folder / "labels" / "val" / f"{number}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(f"val: images/val\nnames: {[*names]}\n")
    return folder / "data.yaml"


class ColourModel(nn.Module):
    """One query per colour channel; the channel is the class.

    Red is found with a probability of 0.9, green with 0.6, blue with 0.3.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, num_classes=3):
        super().__init__()
        self.config = SimpleNamespace(
            name="colour",
            num_classes=num_classes,
            test_short_edge=64,
            test_max_edge=96,
            pixel_mean=(0.0, 0.0, 0.0),
            pixel_std=(255.0, 255.0, 255.0),
        )

    def preprocess(self, images):
        return preprocess(images, self.config, self.device, self.dtype)

    def forward(self, batch):
        masks = 40 * F.avg_pool2d(batch, 8) - 20  # [B, 3, H/8, W/8], +-20
        present = masks.flatten(2).amax(2) > 0  # [B, 3]
        classes = torch.full((len(batch), 3, self.config.num_classes + 1), 1e-6)
        for query, probability in enumerate((0.9, 0.6, 0.3)):
            found = torch.where(present[:, query], probability, 1e-6)
            classes[:, query, query] = found
            classes[:, query, -1] = 1 - classes[:, query, :-1].sum(-1)
        return {"pred_logits": classes.log(), "pred_masks": masks}


def load_colour_model(source, device="cpu"):
    return ColourModel(), CheckpointInfo("colour", NAMES, CATEGORY_IDS)


def program_runner(monkeypatch, capsys, program, *always):
    """Runs a program, by default with `ColourModel`: (arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments, load_model=load_colour_model):
        monkeypatch.setattr("fastinst.networks.load_model", load_model)
        monkeypatch.setattr("fastinst.weights.load_model", load_model)
        monkeypatch.setattr(sys, "argv", [program.name, *map(str, (*arguments, *always))])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(program), run_name="__main__")
        output = capsys.readouterr()
        return exit_.value.code or 0, output.out, output.err

    return run
