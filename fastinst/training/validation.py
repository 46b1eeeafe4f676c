"""The evaluations during a run: they find its best model, and whether it still gets better."""

from typing import Any

import torch
from tqdm import tqdm

from fastinst.data.dataset import Dataset
from fastinst.metrics.evaluate import evaluate
from fastinst.model import FastInst
from fastinst.predictor import Predictor
from fastinst.training.log import Log
from fastinst.training.processes import Processes
from fastinst.training.run_folder import BEST, RunFolder
from fastinst.training.state import Progress
from fastinst.weights import save_checkpoint


class Validation:
    """Evaluates a model now and then, and saves it as best.pt whenever its mask AP is the highest.

    model: the one that is judged, which may be a moving average
    train: gives the classes that best.pt names
    val: the images; None if there are none, and `judge` must not be called
    workers: threads that read the images of `val`
    summary: the numbers of the last evaluation, of `CocoEvaluator.summarize`; None before, and on
        all processes but the leading one
    """

    def __init__(
        self, model: FastInst, train: Dataset, val: Dataset | None, folder: RunFolder, workers: int
    ):
        self.model, self.train, self.val = model, train, val
        self.folder, self.workers = folder, workers
        self.summary: dict[str, Any] | None = None

    def judge(
        self, progress: Progress, row: dict[str, float], log: Log | None, processes: Processes
    ) -> None:
        """Evaluate after the step of the log's `row`, which gets the AP and is written.

        Every process calls this; afterwards `progress` is the same on all, but for `best_ap`,
        which the leading one knows.
        Raises InputError for an image or file that cannot be read or written.
        """
        predictor = Predictor(self.model, self.model.device, torch.float32)
        evaluator = evaluate(predictor, self.val, keep_results=False, workers=self.workers)
        progress.unjudged = None
        in_vain = 0
        if processes.leads:
            self.summary = evaluator.summarize()
            row |= {name: self.summary[name] for name in ("AP", "AP50")}
            log.write(row)
            tqdm.write("step {step}: mask AP {AP:.2f}, AP50 {AP50:.2f}".format(**row))
            in_vain = progress.evaluations_in_vain + 1
            if row["AP"] > progress.best_ap:
                progress.best_ap, in_vain = row["AP"], 0
                classes = self.train.class_names, self.train.category_ids
                save_checkpoint(self.folder.path / BEST, self.model, *classes)
        (progress.evaluations_in_vain,) = processes.largest((in_vain,))
