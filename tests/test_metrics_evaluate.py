import json
import os
import threading
import time

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from coco_cases import load, random_images
from small_coco import ColourModel, write_coco

from fastinst.errors import InputError
from fastinst.metrics.classes import match_classes
from fastinst.metrics.evaluate import evaluate
from fastinst.predictor import Predictor


def run(dataset, model=None, **options):
    return evaluate(Predictor(model or ColourModel()), dataset, progress=False, **options)


def test_the_rectangles_are_found(tmp_path):
    rectangles = [[(0, 0, 0, 32, 32), (1, 40, 8, 64, 40)], [(2, 16, 16, 80, 56)], []]
    dataset = load(write_coco(tmp_path, rectangles))
    assert run(dataset).summarize()["AP"] == pytest.approx(100)
    first = run(dataset, max_images=1)
    assert {result["image_id"] for result in first.results()} == {1}
    assert first.summarize()["images"] == 1


def test_batches_and_readers_change_nothing(tmp_path):
    truth, _ = random_images(np.random.default_rng(5), 7)
    dataset = load(write_coco(tmp_path, truth))
    metrics = ("mask", "box", "boundary")
    expected = run(dataset, metrics=metrics, workers=0)
    for options in ({"batch_size": 3}, {"workers": 5}):
        evaluator = run(dataset, metrics=metrics, **options)
        assert evaluator.results() == expected.results()
        assert json.dumps(evaluator.summarize()) == json.dumps(expected.summarize())


def test_results_are_kept_only_if_asked_for(tmp_path):
    dataset = load(write_coco(tmp_path, [[(0, 0, 0, 32, 32)]]))
    evaluator = run(dataset, keep_results=False)
    assert evaluator.summarize()["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="keep_results"):
        evaluator.results()


class Interrupted(ColourModel):
    """Ctrl-C after three images."""

    seen = 0

    def forward(self, batch):
        self.seen += 1
        if self.seen > 3:
            raise KeyboardInterrupt
        return super().forward(batch)


def test_an_interrupt_says_how_far_it_got_and_leaves_no_thread(tmp_path):
    dataset = load(write_coco(tmp_path, [[(0, 0, 0, 32, 32)]] * 9))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt, match="after 3 of 9 images"):
        run(dataset, Interrupted())
    for _ in range(50):
        if threading.active_count() == before:
            break
        time.sleep(0.1)
    assert threading.active_count() == before


def test_an_error_while_comparing_is_raised(tmp_path, monkeypatch):
    dataset = load(write_coco(tmp_path, [[(0, 0, 0, 32, 32)]] * 3))

    def update(self, image_id, found):
        raise ZeroDivisionError(f"image {image_id}")

    monkeypatch.setattr("fastinst.metrics.coco.CocoEvaluator.update", update)
    with pytest.raises(ZeroDivisionError, match="image 1"):
        run(dataset)


def test_classes_are_matched_by_name(tmp_path):
    path = write_coco(tmp_path, [[(1, 0, 0, 32, 32)]], names=("a", "b", "c"))
    dataset = load(path)
    assert match_classes(("c", "other", "a", "b"), 4, dataset).tolist() == [2, -1, 0, 1]
    assert match_classes(None, 3, dataset).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="1 of the 3 classes .*: c "):
        match_classes(("a", "b"), 2, dataset)
    with pytest.raises(InputError, match="80 classes.*has 3"):
        match_classes(None, 80, dataset)
    labels = match_classes(("x", "b", "a", "c"), 4, dataset)
    evaluator = run(dataset, ColourModel(4), labels=labels)
    assert evaluator.summarize()["per_class"]["b"]["AP"] == pytest.approx(100)
    assert {result["category_id"] for result in evaluator.results()} <= {3, 7, 20}
    with pytest.raises(InputError, match="4 classes"):
        run(dataset, ColourModel(4))


def _evaluate_share(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    dataset = load(folder / "val.json")
    for count in (5, 2):
        evaluator = run(dataset, max_images=count)
        numbers = [evaluator.results(), evaluator.summarize() if rank == 0 else None]
        (folder / f"{count} {rank}.json").write_text(json.dumps(numbers))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a normal end: pytorch/pytorch#179291


def test_three_processes_get_the_numbers_of_one(tmp_path):
    truth, _ = random_images(np.random.default_rng(2), 5)
    dataset = load(write_coco(tmp_path, truth))
    mp.spawn(_evaluate_share, (tmp_path,), nprocs=3)
    for count, shares in ((5, [{1, 4}, {2, 5}, {3}]), (2, [{1}, {2}, set()])):
        alone = run(dataset, max_images=count)
        text = (tmp_path / f"{count} 0.json").read_text()
        assert text == json.dumps([alone.results(), alone.summarize()])
        for rank in (1, 2):
            results, _ = json.loads((tmp_path / f"{count} {rank}.json").read_text())
            assert {r["image_id"] for r in results} <= shares[rank]
