"""The evaluations during a run: they find its best model, and whether it still gets better."""

from typing import Any

import torch
from tqdm import tqdm

from fastinst.data.dataset import Dataset
from fastinst.metrics.measures import Measure
from fastinst.model import FastInst
from fastinst.predictor import Predictor
from fastinst.training.log import Log
from fastinst.training.processes import Processes
from fastinst.training.run_folder import BEST, RunFolder
from fastinst.training.state import Progress
from fastinst.weights import save_checkpoint


class Validation:
    """Evaluates a model now and then, and saves it as best.pt whenever it is the best so far.

    model: the one that is judged, which may be a moving average
    measure: what it is judged by, that of the run's task
    train: gives the classes that best.pt names
    val: the images; None if there are none, and `judge` must not be called
    workers: threads that read the images of `val`
    summary: the numbers of the last evaluation, of the evaluator's `summarize`; None before, and
        on all processes but the leading one
    """

    def __init__(
        self,
        model: FastInst,
        measure: Measure,
        train: Dataset,
        val: Dataset | None,
        folder: RunFolder,
        workers: int,
    ):
        self.model, self.measure, self.train, self.val = model, measure, train, val
        self.folder, self.workers = folder, workers
        self.summary: dict[str, Any] | None = None

    def judge(
        self, progress: Progress, row: dict[str, float], log: Log | None, processes: Processes
    ) -> None:
        """Evaluate after the step of the log's `row`, which gets the numbers and is written.

        Every process calls this; afterwards `progress` is the same on all, but for `best`, which
        the leading one knows.
        Raises InputError for an image or file that cannot be read or written.
        """
        predictor = Predictor(self.model, self.model.device, torch.float32)
        evaluator = self.measure.evaluate(predictor, self.val, workers=self.workers)
        progress.unjudged = None
        in_vain = 0
        if processes.leads:
            self.summary = evaluator.summarize()
            row |= {name: self.summary[name] for name in self.measure.numbers}
            log.write(row)
            tqdm.write(f"step {row['step']}: {self.measure.line(row)}")
            in_vain = progress.evaluations_in_vain + 1
            if row[self.measure.chief] > progress.best:
                progress.best, in_vain = row[self.measure.chief], 0
                save_checkpoint(
                    self.folder.path / BEST,
                    self.model,
                    self.train.class_names,
                    self.train.category_ids,
                    is_thing=self.train.is_thing,
                )
        (progress.evaluations_in_vain,) = processes.largest((in_vain,))
