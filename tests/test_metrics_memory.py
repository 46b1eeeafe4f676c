"""Evaluating large photographs that are full of objects takes little memory and time."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_coco import ColourModel, write_coco

from fastinst.benchmarking.cost import working_memory
from fastinst.data.coco import load_coco
from fastinst.metrics.evaluate import evaluate
from fastinst.predictor import Predictor

HEIGHT, WIDTH, OBJECTS, IMAGES = 3000, 4000, 1000, 4
MEGABYTES = 500


def write_crowded(folder):
    """Photographs with OBJECTS objects each: polygons of 40 corners in rows, up to 100 wide."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    images, annotations = [], []
    (folder / "val").mkdir()
    for number in range(1, IMAGES + 1):
        pixels = rng.integers(0, 255, (HEIGHT // 20, WIDTH // 20, 3), np.uint8)
        photo = Image.fromarray(pixels).resize((WIDTH, HEIGHT))
        photo.save(folder / "val" / f"{number}.jpg")
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
        )
        for i in range(OBJECTS):
            radius = rng.uniform(10, 50, 40)
            x = 60 + i % 40 * 98 + radius * np.cos(angles)
            y = 60 + i // 40 * 118 + radius * np.sin(angles)
            points = np.stack([x, y], 1).round(2).ravel().tolist()
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 3,
                 "segmentation": [points], "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in ((3, "red"), (7, "green"), (20, "blue"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(content))


class Blobs(ColourModel):
    """A hundred masks over the whole photograph, at no cost."""

    def __init__(self):
        super().__init__()
        self.config.test_short_edge, self.config.test_max_edge = 640, 864

    def forward(self, batch):
        height, width = (side // 8 for side in batch.shape[2:])
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        query = torch.arange(100)[:, None, None]
        centre = query % 10 * (width / 10) + 5, query // 10 * (height / 10) + 5
        distance = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2).float().sqrt()
        masks = 4 - distance + 8 * torch.sin(x / 3.0) * torch.cos(y / 4.0)
        logits = torch.full((100, 4), -6.0)
        logits[:, 0] = torch.linspace(3, -3, 100)
        return {"pred_logits": logits[None], "pred_masks": masks[None]}


def measure(folder):
    """Prints the memory that the evaluation takes, in MB, and its seconds per image."""
    predictor = Predictor(Blobs())
    (folder / "small").mkdir()
    small = write_coco(folder / "small", [[(0, 0, 0, 32, 32)]])
    metrics = ("mask", "box", "boundary")
    evaluate(predictor, load_coco(small, small.parent / "val"), metrics=metrics, progress=False)
    dataset = load_coco(folder / "val.json", folder / "val")
    start = time.perf_counter()

    def judge():
        summary = evaluate(predictor, dataset, metrics=metrics, progress=False).summarize()
        assert summary["instances"] == IMAGES * OBJECTS

    taken = working_memory(judge, torch.device("cpu"))
    print(json.dumps([taken and taken / 2**20, (time.perf_counter() - start) / IMAGES]))


@pytest.mark.slow
def test_large_images_full_of_objects(tmp_path):
    write_crowded(tmp_path)
    command = [sys.executable, __file__, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    megabytes, seconds = json.loads(run.stdout)
    if megabytes is None:
        pytest.skip("only Linux tells a process's memory")
    assert 0 < megabytes < MEGABYTES and seconds < 30


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
