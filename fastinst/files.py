"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastinst.errors import InputError


@contextmanager
def write_whole(path: Path | str) -> Iterator[BinaryIO]:
    """Open a binary file that appears under `path` only when the block ends without an error.

    Its bytes go to a temporary file in the same folder, which must exist, and are on the disk
    before the rename, so a reader, a crash or a full disk never meets half a file.
    Raises InputError if the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        # NamedTemporaryFile makes private files; give this one what open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def make_output_folder(path: Path | str) -> Path:
    """Create a folder for results, or raise InputError where nothing can be written into it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"cannot write into the folder {path}: {error.strerror}") from error
    return path


def check_output_file(path: Path | str) -> None:
    """Raise InputError now if `write_whole` could not write there; makes the folder."""
    make_output_folder(Path(path).parent)
    if Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")
