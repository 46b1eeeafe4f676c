"""What tells a build of csrc/ from one of other sources.

Only the standard library, and nothing of this package: setup.py runs this file by itself.
"""

import hashlib
from pathlib import Path


def sources_digest(csrc: Path) -> str:
    """SHA-256 of all C++ and CUDA files in a folder, with their paths in it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in (".h", ".cpp", ".cuh", ".cu")):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
