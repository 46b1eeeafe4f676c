"""Panoptic and semantic evaluation of a model on a data set."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from small_cityscapes import SIZE, write_cityscapes

from fastinst.data.augment import resize_shortest_edge
from fastinst.data.cityscapes import STUFF, THINGS, load_cityscapes
from fastinst.data.cityscapes_results import CityscapesResults
from fastinst.errors import InputError
from fastinst.metrics.evaluate_segments import evaluate_segments
from fastinst.metrics.panoptic_quality import PanopticQuality
from fastinst.metrics.semantic import SemanticEvaluator
from fastinst.segments import Segment, SegmentMap

NAMES = tuple(name for _, name in sorted((STUFF | THINGS).items()))


class TruthTeller:
    """A predictor that knows the data set, and its classes in another order and "tree" besides.

    A query for each segment and crowd, sure of its class, with its mask at 1/8 of the input.
    """

    class_names = ("tree", *reversed(NAMES))
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, records):
        self.config = SimpleNamespace(
            num_classes=20, pixel_mean=(0.0, 0, 0), pixel_std=(1.0, 1, 1), name="teller"
        )
        self.records, self.seen = iter(records), []

    def resize(self, image):
        return torch.from_numpy(resize_shortest_edge(image, *SIZE)).permute(2, 0, 1)

    def network(self, batch):
        assert batch.shape == (1, 3, *SIZE)
        record = next(self.records)
        self.seen.append(record.id)
        logits = torch.full((1, len(record.annotations), 21), -20.0, device="cpu")
        masks = np.stack([a.mask(*SIZE) for a in record.annotations]).astype(np.float32)
        for query, annotation in enumerate(record.annotations):
            logits[0, query, self.class_names.index(NAMES[annotation.label])] = 20
        return {
            "pred_logits": logits,
            "pred_masks": F.avg_pool2d(torch.from_numpy(masks)[None], 8) * 20 - 10,
        }


@pytest.fixture
def root(tmp_path):
    return write_cityscapes(tmp_path)


def test_panoptic(root):
    dataset = load_cityscapes(root, "val", "panoptic")
    kept = []
    predictor = TruthTeller(dataset.images)
    quality = evaluate_segments(
        predictor, dataset, "panoptic", keep=lambda *found: kept.append(found), progress=False
    )
    assert predictor.seen == [1, 2, 3] == [record.id for record, _ in kept]
    expected = PanopticQuality(dataset.class_names, dataset.is_thing)
    for record, found in kept:
        assert found.ids.shape == SIZE
        expected.update(SegmentMap.of(record), found)
    assert np.array_equal(quality.counts, expected.counts) and quality.images == 3
    summary = quality.summarize()
    # Blocks of 8 pixels are too coarse for people.
    assert 60 < summary["PQ"] < 100 and summary["per_class"]["road"]["PQ"] > 85


def test_semantic(root):
    dataset = load_cityscapes(root, "val", "semantic")
    kept = []
    evaluator = evaluate_segments(
        TruthTeller(dataset.images),
        dataset,
        "semantic",
        keep=lambda *found: kept.append(found),
        max_images=2,
        progress=False,
    )
    expected = SemanticEvaluator(dataset.class_names)
    for record, found in kept:
        expected.update(SegmentMap.of(record).labels(), found)
    assert np.array_equal(evaluator.confusion, expected.confusion) and evaluator.images == 2
    assert 70 < evaluator.summarize()["mIoU"] < 100


def test_classes_that_the_data_set_lacks_are_void(root):
    dataset = load_cityscapes(root, "val", "panoptic")
    predictor = TruthTeller(dataset.images)
    predictor.class_names = tuple(
        {"tree": "sky", "sky": "tree"}.get(name, name) for name in predictor.class_names
    )
    predictor.network = only_trees
    summary = evaluate_segments(predictor, dataset, "panoptic", progress=False).summarize()
    assert summary["PQ"] == 0 and summary["classes"] < 19
    predictor.network = only_trees
    summary = evaluate_segments(predictor, dataset, "semantic", progress=False).summarize()
    assert summary["accuracy"] == 0


def only_trees(batch):
    logits = torch.full((1, 1, 21), -20.0, device="cpu")
    logits[0, 0, 1 + NAMES[::-1].index("sky")] = 20
    return {"pred_logits": logits, "pred_masks": torch.full((1, 1, 8, 16), 9.0, device="cpu")}


def _counts(evaluator):
    return evaluator.counts if isinstance(evaluator, PanopticQuality) else evaluator.confusion


def _evaluate_share(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for task in ("panoptic", "semantic"):
        dataset = load_cityscapes(folder, "val", task)
        results = CityscapesResults(folder / task, task, dataset.category_ids)
        teller = TruthTeller(dataset.images[rank::2])
        evaluator = evaluate_segments(teller, dataset, task, keep=results.add, progress=False)
        results.finish()
        if rank == 0:
            np.savez(folder / f"{task}.npz", counts=_counts(evaluator), images=evaluator.images)
    dist.barrier()
    dist.destroy_process_group()


def test_processes_share_the_images(root):
    mp.spawn(_evaluate_share, (root,), nprocs=2)
    for task in ("panoptic", "semantic"):
        dataset = load_cityscapes(root, "val", task)
        alone = evaluate_segments(TruthTeller(dataset.images), dataset, task, progress=False)
        together = np.load(root / f"{task}.npz")
        np.testing.assert_allclose(together["counts"], _counts(alone), rtol=1e-14)
        assert together["images"] == 3
    written = json.loads((root / "panoptic" / "panoptic.json").read_text())["annotations"]
    names = sorted(row["image_id"] for row in written)
    assert names == ["aachen_000000_000019", "aachen_000002_000019", "ulm_000001_000019"]


def test_things_and_stuff_must_be_known(root):
    dataset = load_cityscapes(root, "val")
    with pytest.raises(InputError, match="does not tell things from stuff"):
        evaluate_segments(TruthTeller(dataset.images), dataset, "panoptic")


def test_relabelled():
    ids = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)
    segments = SegmentMap(ids, (Segment(1, 0), Segment(2, 1), Segment(3, 0, score=0.5)))
    other = segments.relabelled([4, -1])
    assert other.ids.tolist() == [[0, 1, 0, 3]]
    assert other.segments == (Segment(1, 4), Segment(3, 4, score=0.5))


def test_all_of_a_class_joined():
    ids = torch.tensor([[0, 1, 2], [3, 3, 7]], dtype=torch.int32)
    segments = (Segment(1, 0), Segment(2, 1), Segment(3, 0, score=0.5), Segment(7, 4))
    found = SegmentMap(ids, segments, tuple("abcde"))
    joined = found.by_class()
    assert joined.ids.tolist() == [[0, 1, 2], [1, 1, 5]] and joined.ids.dtype == torch.int32
    assert joined.segments == (Segment(1, 0), Segment(2, 1), Segment(5, 4))
    assert torch.equal(joined.labels(), found.labels())
    assert (len(found), found.names, joined.names) == (4, list("abae"), list("abe"))
    assert repr(joined) == "<3 segments in 3 x 2 pixels: a, b, e>"
    assert len(SegmentMap(ids.new_zeros(2, 3), ()).by_class()) == 0
