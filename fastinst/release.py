"""The files of the authors' release, downloaded once."""

import http.client
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from fastinst.errors import InputError
from fastinst.files import make_output_folder, write_whole
from fastinst.pickles import foreign

RELEASE_URL = "https://github.com/junjiehe96/FastInst/releases/download/v0.1.0/"
RELEASE_FILES = {
    "fastinst-d1-r50-576": "fastinst_R50_ppm-fpn_x1_576_34.9.pth",
    "fastinst-d3-r50-640": "fastinst_R50_ppm-fpn_x3_640_37.9.pth",
    "fastinst-d3-r101-640": "fastinst_R101_ppm-fpn_x3_640_38.9.pth",
    "fastinst-d1-r50d-dcn-576": "fastinst_R50-vd-dcn_ppm-fpn_x1_576_37.4.pth",
    "fastinst-d3-r50d-dcn-640": "fastinst_R50-vd-dcn_ppm-fpn_x3_640_40.1.pth",
}


def download(name: str, progress: bool) -> Path:
    """The file of the released model `name`, in PyTorch's hub folder.

    Raises:
        InputError: it is not there and cannot be downloaded or written; names the URL and the
            place for the file.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", RELEASE_FILES[name])
    if not path.exists():
        make_output_folder(path.parent)
        with write_whole(path) as file:
            for chunk in _fetch(RELEASE_URL + path.name, path, progress):
                file.write(chunk)
    return path


def _fetch(url: str, path: Path, progress: bool) -> Iterator[bytes]:
    """The bytes at `url`, in pieces; InputError says how to bring them to `path` otherwise."""
    received = 0
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            total = int(response.headers.get("Content-Length") or 0) or None
            bar = tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=not progress)
            with bar:
                while chunk := response.read(1 << 20):
                    if received == 0 and (problem := foreign(chunk)):
                        raise OSError(f"what came is {problem}")
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
        if not received or received != (total or received):
            raise OSError(f"the connection ended after {received} of {total} bytes")
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"cannot download {url} ({error}); fetch it by other means and put it at {path}"
        ) from error
