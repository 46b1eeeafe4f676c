"""Reading and writing videos by the ffmpeg program."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastinst.errors import InputError
from fastinst.files import write_whole

VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}


def find_ffmpeg() -> str:
    """The installed ffmpeg program, else that of the package imageio-ffmpeg.

    Raises InputError if there is neither.
    """
    if program := shutil.which("ffmpeg"):
        return program
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise InputError(
            "videos need the program ffmpeg: install it (apt install ffmpeg, brew install ffmpeg) "
            "or pip install imageio-ffmpeg"
        ) from error


@dataclass
class Video:
    """A video file whose header has been read.

    width, height: of its frames as they are to be seen, that is, rotated
    rate: frames per second; where the file's vary, the one that they are converted to
    damage: what ended `frames` early, or None
    """

    path: Path
    width: int
    height: int
    rate: Fraction
    damage: str | None = None

    @classmethod
    def open(cls, path: Path) -> "Video":
        """Raises InputError if there is no ffmpeg or it cannot read the file."""
        # This format's header, unlike ffprobe's output, has sizes after rotation, and imageio's
        # package has no ffprobe.
        options = ["-map", "0:v:0", "-frames:v", "1", "-strict", "-1", "-f", "yuv4mpegpipe", "-"]
        with _ffmpeg(["-i", _file(path), *options], stdout=subprocess.PIPE) as (process, messages):
            header = process.stdout.readline(1000).decode("ascii", "replace")
            process.stdout.read()
            process.wait()
            fields = re.match(r"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+)", header)
            if not fields or fields[4] == "0":
                raise InputError(f"{path}: no video that ffmpeg can read ({_last(messages)})")
        width, height, numerator, denominator = map(int, fields.groups())
        return cls(path, width, height, Fraction(numerator, denominator))

    def frames(self) -> Iterator[np.ndarray]:
        """Each frame as uint8 [H, W, 3] RGB, at the constant `rate`.

        What cannot be read ends them and is left in `damage`.
        """
        arguments = ["-i", _file(self.path), "-map", "0:v:0", "-r", str(self.rate)]
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{self.width}x{self.height}", "-"]
        count = 0
        with _ffmpeg([*arguments, *raw], stdout=subprocess.PIPE) as (process, messages):
            while True:
                frame = np.empty((self.height, self.width, 3), dtype=np.uint8)
                if process.stdout.readinto(frame.data.cast("B")) < frame.size:
                    break
                yield frame
                count += 1
            code = process.wait()
            if code or _last(messages):
                why = _last(messages) or f"ffmpeg ended with {code}"
                self.damage = f"{self.path}: damaged; {count} frames could be read ({why})"


class VideoWriter:
    """Writes frames to an MP4 file, with the sound of the video they come from.

        with VideoWriter("drawn.mp4", video) as writer:
            writer.write(frame)

    The file appears under its name when the block ends without an error, and then holds all
    frames that were written. Players want an even width and height, so a black row or column may
    be added.

    Raises InputError if it cannot be written.
    """

    def __init__(self, path: Path, source: Video):
        self.path, self.source = Path(path), source
        self._size = (source.height, source.width, 3)

    def __enter__(self) -> "VideoWriter":
        self._context = self._open()
        return self._context.__enter__()

    def __exit__(self, *error) -> bool | None:
        return self._context.__exit__(*error)

    @contextmanager
    def _open(self) -> Iterator["VideoWriter"]:
        source = self.source
        frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{source.width}x{source.height}"]
        inputs = [*frames, "-r", str(source.rate), "-i", "-", "-i", _file(source.path)]
        picture = ["-map", "0:v", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p"]
        # The pictures decide how long it is: sound is followed by silence, and cut with them.
        sound = ["-map", "1:a?", "-c:a", "aac", "-af", "apad", "-shortest"]
        with write_whole(self.path) as file:
            output = ["-movflags", "+faststart", "-f", "mp4", "-y", _file(Path(file.name))]
            command = [*inputs, *picture, *sound, *output]
            with _ffmpeg(command, stdin=subprocess.PIPE) as (process, messages):
                self._process = process
                try:
                    yield self
                    process.stdin.close()
                    failed = process.wait() != 0
                except BrokenPipeError:
                    failed = True
                if failed:
                    process.wait()
                    raise OSError(_last(messages) or "ffmpeg ended early")

    def write(self, frame: np.ndarray) -> None:
        """frame: uint8 [H, W, 3] RGB of the source's size"""
        if frame.shape != self._size or frame.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self._size}, got {frame.dtype} {frame.shape}")
        self._process.stdin.write(np.ascontiguousarray(frame).data)


@contextmanager
def _ffmpeg(arguments: list[str], **pipes) -> Iterator[tuple[subprocess.Popen, BinaryIO]]:
    """ffmpeg, running, and the file of what it has to say; ended when the block is left."""
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **pipes}
    # Its messages go to a file, for nobody reads them while frames go through the pipes. Ctrl-C in
    # a terminal reaches its whole session, but it is this process that ends its ffmpegs.
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, **streams, stderr=messages, start_new_session=True)
        try:
            yield process, messages
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with suppress(OSError):  # what was not flushed goes nowhere
                        pipe.close()
            try:
                process.wait(timeout=0.5)  # with its output closed it ends by itself
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _file(path: Path) -> str:
    """So that ffmpeg takes no name for an option or a protocol, such as "2:1.mp4"."""
    return f"file:{path}"


def _last(messages: BinaryIO) -> str:
    """The last line that ffmpeg, which has ended, wrote, without the address of its component."""
    messages.seek(0)
    lines = messages.read()[-10_000:].decode("utf-8", "replace").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return re.sub(r"^\[.* @ \w+\] ", "", line)
