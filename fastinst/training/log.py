"""The numbers of a training run: log.csv, a row for every step, and TensorBoard's files."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastinst.errors import InputError
from fastinst.files import write_whole
from fastinst.metrics.measures import MEASURES, Measure

LOSS_KINDS = ("loss_ce", "loss_mask", "loss_dice", "loss_proposal")
_BEFORE = ("step", "epoch", "seconds", "lr", "gradient_norm", "loss", *LOSS_KINDS)
_AFTER = ("images_per_second", "memory_mib")


class Log:
    """Writes each row to log.csv at once, and to TensorBoard's files if that is installed.

    folder: of the run
    step: of the checkpoint that is resumed, else 0; rows of later steps are dropped
    say: told once where TensorBoard looks, or that there is no TensorBoard
    measure: whose numbers validation gives; a resumed run keeps its columns of others
    columns: their names, in their order
    Raises InputError if log.csv cannot be written, here and at every row.
    """

    def __init__(
        self,
        folder: Path | str,
        step: int = 0,
        say: Callable[[str], object] = print,
        measure: Measure = MEASURES["instance"],
    ):
        self.path = Path(folder) / "log.csv"
        rows = read_log(self.path) if step and self.path.exists() else []
        rows = [row for row in rows if row["step"] <= step]
        found = {name for row in rows for name in row}.union(measure.numbers)
        measured = [name for m in MEASURES.values() for name in m.numbers if name in found]
        self.columns = (*_BEFORE, *measured, *_AFTER)
        lines = [",".join(self.columns) + "\n", *map(self._line, rows)]
        with write_whole(self.path) as file:
            file.write("".join(lines).encode())
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._tensorboard = _open_tensorboard(Path(folder), step, say)

    def write(self, row: Mapping[str, float]) -> None:
        """row: values by names of `columns`, of which all but "step" may be left out"""
        try:
            self._file.write(self._line(row))
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error
        if self._tensorboard:
            for name in self.columns[1:]:
                if name in row:
                    self._tensorboard.add_scalar(name, row[name], row["step"])

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def _line(self, row: Mapping[str, float]) -> str:
        values = (row.get(name, "") for name in self.columns)
        return ",".join(f"{v:.8g}" if isinstance(v, float) else str(v) for v in values) + "\n"


def loss_columns(losses: Mapping[str, float]) -> dict[str, float]:
    """A row's total loss and its parts, each summed over the model's outputs."""
    kinds = {
        kind: sum(value for name, value in losses.items() if name.startswith(kind))
        for kind in LOSS_KINDS
    }
    return {"loss": sum(losses.values())} | kinds


def read_log(path: Path | str) -> list[dict[str, float]]:
    """The rows of a log.csv, in their order, without their empty fields.

    A row that a killed process has left unfinished is passed over.
    Raises InputError if the file cannot be read or is no log.
    """
    try:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file if line.endswith("\n")]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    header, *rows = (line.split(",") for line in lines or [""])
    if "step" not in header:
        raise InputError(f"{path} is no log of a run: its first line has no column 'step'")
    found = []
    for row in rows:
        with suppress(ValueError):  # a line cut short and continued by another run's first one
            fields = dict(zip(header, row, strict=True))
            values = {name: float(value) for name, value in fields.items() if value}
            found.append(values | {"step": int(fields["step"])})
    return found


def _open_tensorboard(folder: Path, step: int, say: Callable[[str], object]) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # not installed, or of a version that does not fit NumPy's
        say(f"no TensorBoard ({error}): the numbers are in log.csv alone")
        return None
    place = folder / "tensorboard"
    say(f"to watch the run: tensorboard --logdir {shlex.quote(str(place))}")
    return SummaryWriter(str(place), purge_step=step + 1)
