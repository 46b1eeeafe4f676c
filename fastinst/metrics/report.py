"""The pictures of an evaluation: precision over recall, and the worst mistakes."""

from collections import Counter
from pathlib import Path

from fastinst.files import write_whole
from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.gallery import draw_gallery
from fastinst.metrics.precision_recall import draw_precision_recall
from fastinst.visualize import save_jpeg


def write_report(evaluator: CocoEvaluator, name: str, folder: Path) -> list[Path]:
    """Write precision_recall.png by the chief metric, and mistakes.jpg, into a folder.

    evaluator: of results with masks, with `keep_results`
    name: of the model, for the titles
    Returns the files. Without ground truth there is no curve.
    Raises InputError for an image that cannot be read, or a picture that cannot be written.
    """
    written = []
    metric, dataset = evaluator.metrics[0], evaluator.dataset
    title = f"{name} on {dataset.source.name}, {metric} AP"
    records = [evaluator.records[image_id] for image_id in evaluator.image_ids]
    counts = Counter(a.label for record in records for a in record.annotations if not a.iscrowd)
    curves = evaluator.curves(metric)
    curves = draw_precision_recall(curves, dataset.class_names, counts, title)
    if curves is not None:
        written.append(folder / "precision_recall.png")
        with write_whole(written[-1]) as file:
            curves.save(file, "PNG")
    written.append(folder / "mistakes.jpg")
    save_jpeg(written[-1], draw_gallery(dataset, evaluator.results_by_image()))
    return written
