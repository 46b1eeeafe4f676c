"""Writing files whole or not at all."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fastinst.errors import InputError

_UNFINISHED = ".unfinished"
# The mask is the process's, and to read it is to change it: threads take turns.
_UMASK = threading.Lock()


@contextmanager
def write_whole(path: Path | str, former: Path | str | None = None) -> Iterator[BinaryIO]:
    """Open a binary file that appears under `path` only when the block ends without an error.

    Its bytes go to a temporary file in the same folder, which must exist, and are on the disk
    before the rename, so a reader, a crash or a full disk never meets half a file. `former`, in
    the same folder, is where the file that `path` names until then is kept, if there is one.
    Raises InputError if the file cannot be written; all files are then as they were.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED, delete=False
        ) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        # NamedTemporaryFile makes private files; give this one what open() would have given.
        with _UMASK:
            mask = os.umask(0)
            os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if former is not None and path.exists():
            _keep(path, Path(former))
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _keep(path: Path, other: Path) -> None:
    """Name the file at `path` `other` as well, or where there are no links, instead."""
    link = other.with_name(f".{other.name}.{os.getpid()}{_UNFINISHED}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, other)
        link.unlink(missing_ok=True)  # renaming one link of a file to another of it does nothing
    except OSError:  # FAT, some network disks and containers
        os.replace(path, other)


def sync_folder(folder: Path | str) -> None:
    """Return when the folder's last renames are on the disk, where the system can tell."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_unfinished(path: Path | str) -> None:
    """Delete what killed processes have left of `write_whole(path)`; no other may be writing it."""
    path = Path(path)
    with suppress(OSError):  # they are in nobody's way; where no folder is, writing will say so
        for left in path.parent.iterdir():
            if left.name.startswith(f".{path.name}.") and left.name.endswith(_UNFINISHED):
                left.unlink(missing_ok=True)


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
