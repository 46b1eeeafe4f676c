"""What is seen of a training run while it runs."""

import sys
from collections.abc import Mapping

from tqdm import tqdm


def progress_bar(steps: int, done: int, shown: bool) -> tqdm:
    """Of so many steps, some of them done; one line now and then where stderr is a file."""
    return tqdm(
        total=steps,
        initial=done,
        disable=not shown,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )


def show_step(bar: tqdm, row: Mapping[str, float]) -> None:
    """One step more, with its numbers of `log.COLUMNS`."""
    bar.set_postfix_str(
        "loss {loss:.2f}, lr {lr:.1e}, {images_per_second:.1f} images/s, "
        "{memory_mib:.0f} MiB".format(**row),
        refresh=False,
    )
    bar.update()
