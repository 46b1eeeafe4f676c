"""The table of a training run, log.csv: a row for every step."""

import csv
from pathlib import Path
from typing import TextIO

from fastinst.files import write_whole

LOSS_KINDS = ("loss_ce", "loss_mask", "loss_dice", "loss_proposal")
COLUMNS = (
    *("step", "epoch", "seconds", "lr", "gradient_norm"),
    *("loss", *LOSS_KINDS, "AP", "AP50"),
)


def open_log(path: Path, step: int) -> tuple[TextIO, csv.DictWriter]:
    """The file and the writer of its rows; a resumed run keeps those up to `step`."""
    lines = [",".join(COLUMNS)]
    if step and path.exists():
        rows = path.read_text().splitlines()[1:]
        lines += [row for row in rows if int(row.partition(",")[0]) <= step]
    with write_whole(path) as whole:
        whole.write("".join(f"{line}\n" for line in lines).encode())
    file = path.open("a", newline="")
    return file, csv.DictWriter(file, COLUMNS, lineterminator="\n")
