"""The folder of a training run: its checkpoints, of which one can always be read.

last.pt and previous.pt, the one before it, hold all that resuming needs; best.pt is a model alone.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastinst.errors import InputError
from fastinst.files import remove_unfinished, sync_folder
from fastinst.model import FastInst
from fastinst.weights import read_checkpoint, save_checkpoint

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class RunFolder:
    """Saves a run, and loads it to be resumed.

    path: the folder; or one of its checkpoints, which `load` then reads. Nothing is touched yet.
    """

    def __init__(self, path: Path | str):
        path = Path(path)
        self.path, self._start = (path.parent, path.name) if path.is_file() else (path, LAST)
        self._saved = False

    def save(
        self,
        model: FastInst,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        training: dict[str, Any],
        is_thing: Sequence[bool] | None = None,
    ) -> None:
        """Write last.pt, as `save_checkpoint`; the former one becomes previous.pt.

        At any moment, whatever ends the process or the machine, one of the two can be read. The
        first call also deletes unfinished files of killed processes. `load` expects the step in
        training["progress"]["step"].

        Raises:
            InputError: last.pt cannot be written, as on a full disk; both are then as they were.
        """
        last, previous = self.path / LAST, self.path / PREVIOUS
        if not self._saved:
            for name in (LAST, PREVIOUS, BEST):
                remove_unfinished(self.path / name)
        # A damaged last.pt must not take the place of the good previous.pt.
        former = previous if self._saved or _read(last)[0] else None
        try:
            save_checkpoint(last, model, class_names, category_ids, training, former, is_thing)
        except InputError as error:
            kept = [name for name in (LAST, PREVIOUS) if (self.path / name).exists()]
            state = f"; {' and '.join(kept)} of the run are as before" if kept else ""
            again = f"--resume {shlex.quote(str(self.path))}"
            raise InputError(
                f"{error}{state}. Make room or mend the folder, then {again}"
            ) from error
        sync_folder(self.path)
        self._saved = True

    def load(self) -> tuple[dict[str, Any], Path, str | None]:
        """The checkpoint of `read_checkpoint`, its file, and what to tell the user if it is not
        last.pt because that is missing or damaged.

        Raises:
            InputError: no checkpoint can be read, or it has no training state.
        """
        path, note = self.path / self._start, None
        checkpoint, fault = _read(path)
        if checkpoint is None and self._start == LAST:
            path = self.path / PREVIOUS
            checkpoint, second_fault = _read(path)
            if checkpoint is None:
                raise InputError(f"{fault}; and neither is there a way back: {second_fault}")
            note = f"{fault}; going on from {path}"
        if checkpoint is None:
            raise InputError(fault)
        training = checkpoint.get("training")
        if not training:
            raise InputError(
                f"{path} holds no training state to resume (best.pt never does): pass the folder "
                f"or its last.pt, or start a new run from it with --weights"
            )
        if note:
            note += f", which was saved at step {training['progress']['step']}"
        return checkpoint, path, note


def resolve_resume(resume: str, output: Path | str) -> Path | None:
    """The folder or the checkpoint that --resume means, for `RunFolder`.

    resume: a run's folder; a checkpoint file; or "auto": the run in `output` if there is one,
        else None, which is to start anew

    Raises:
        InputError: there is no run.
    """
    path = Path(output if resume == "auto" else resume)
    if path.is_file() and resume != "auto":
        return path
    if (path / LAST).exists() or (path / PREVIOUS).exists():
        return path
    if (path / BEST).exists():
        raise InputError(
            f"{path} cannot be resumed: it holds {BEST}, which has no training state, but neither "
            f"{LAST} nor {PREVIOUS}; pass --weights {path / BEST} and another --output"
        )
    if resume == "auto":
        return None
    if not path.exists():
        raise InputError(f"--resume {resume}: no such file or folder")
    runs = sorted({found.parent for found in path.glob(f"*/{LAST}")})
    hint = f"; there are runs below it: {', '.join(map(str, runs[:5]))}" if runs else ""
    raise InputError(f"--resume {resume}: the folder holds no {LAST}{hint}")


def _read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """A checkpoint, or None and what is wrong with it."""
    if not path.exists():
        return None, f"{path} does not exist"
    try:
        return read_checkpoint(path), ""
    except InputError as error:
        return None, str(error)
