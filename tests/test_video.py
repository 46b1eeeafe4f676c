"""Videos, by a stand-in for ffmpeg that speaks its protocol, and by a real one if there is one."""

import os
import shlex
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_predict_program import names, read

import fastinst.prediction.instance_files
from fastinst.errors import InputError
from fastinst.video import Video, VideoWriter, find_ffmpeg

# A clip is "WIDTH HEIGHT FRAMES COMPLAINT CODE"; frame i is red at i * 10. What is written is the
# mean of each frame.
FFMPEG = """import sys
arguments = sys.argv[1:]
inputs = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-i"]
try:
    width, height, frames, complaint, code = open(inputs[-1].removeprefix("file:")).read().split()
except (OSError, ValueError):
    sys.exit("[in @ 0x1234] no such clip")
size = int(width) * int(height) * 3
if inputs[0] == "-":
    with open(arguments[-1].removeprefix("file:"), "w") as out:
        while frame := sys.stdin.buffer.read(size):
            if complaint == "encoder":
                sys.exit("no room on the device")
            print(round(sum(frame[::3]) / (size // 3)), file=out)
elif "yuv4mpegpipe" in arguments:
    print(f"YUV4MPEG2 W{width} H{height} F30000:1001 Ip A1:1 C444")
else:
    for i in range(int(frames)):
        sys.stdout.buffer.write(bytes([i * 10, 0, 0]) * (size // 3))
    if complaint == "reader":
        sys.stderr.write("[in#0/mp4 @ 0x1234] File ended prematurely\\n")
    sys.exit(int(code))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes clips for the stand-in, which is the only ffmpeg there is."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    script = tmp_path / "ffmpeg.py"
    script.write_text(FFMPEG)
    # Not as Python's own "#!" line, which a folder with a space in its name would break.
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(script)])} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    folder = tmp_path / "my videos"
    folder.mkdir()

    def clip(name="clip.mp4", width=96, height=64, frames=5, complaint="none", code=0):
        path = folder / name
        path.write_text(f"{width} {height} {frames} {complaint} {code}")
        return path

    return clip


def test_frames_in_and_out(fake, tmp_path):
    video = Video.open(fake(width=7, height=5, frames=20))
    assert (video.width, video.height, video.rate) == (7, 5, Fraction(30000, 1001))
    with VideoWriter(tmp_path / "out.mp4", video) as writer:
        for i, frame in enumerate(video.frames()):
            assert frame.shape == (5, 7, 3) and (frame == (i * 10, 0, 0)).all()
            writer.write(frame)
        with pytest.raises(ValueError, match="expected uint8"):
            writer.write(frame[1:])
    assert video.damage is None
    assert (tmp_path / "out.mp4").read_text().split() == [str(10 * i) for i in range(20)]


def test_a_damaged_video_says_after_which_frame(fake):
    for clip, words in (
        (fake(frames=3, complaint="reader"), "3 frames could be read (File ended prematurely)"),
        (fake("b.mp4", frames=0, code=69), "0 frames could be read (ffmpeg ended with 69)"),
    ):
        video = Video.open(clip)
        frames = list(video.frames())
        assert words in video.damage and str(clip) in video.damage
        assert len(frames) == int(words[0])


def test_no_video(fake, tmp_path):
    (tmp_path / "my videos" / "notes.mp4").write_text("hello")
    with pytest.raises(InputError, match=r"notes.mp4: no video .* \(no such clip\)"):
        Video.open(tmp_path / "my videos" / "notes.mp4")


def test_what_cannot_be_written_leaves_nothing(fake, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    video = Video.open(fake(width=600, height=400, complaint="encoder"))
    with pytest.raises(InputError, match="out.mp4: no room on the device"):
        with VideoWriter(out / "out.mp4", video) as writer:
            for frame in video.frames():
                writer.write(frame)
                time.sleep(0.05)
    assert names(out) == []
    with pytest.raises(InputError, match="nowhere"):
        with VideoWriter(tmp_path / "nowhere" / "out.mp4", video):
            pass
    with pytest.raises(ZeroDivisionError), VideoWriter(out / "out.mp4", Video.open(fake())):
        _ = 1 / 0
    assert names(out) == []


def test_frames_may_be_abandoned(fake):
    frames = Video.open(fake(width=600, height=400, frames=25)).frames()
    next(frames)
    started = time.perf_counter()
    frames.close()
    assert time.perf_counter() - started < 5


def test_without_any_ffmpeg(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="pip install imageio-ffmpeg"):
        find_ffmpeg()


def test_a_video_is_predicted(predict, fake, tmp_path):
    out = tmp_path / "out"
    code, text, err = predict("colour", fake(frames=26), fake("b.mov"), "--output", out)
    assert code == 0, err
    assert names(out) == ["b.mp4", "clip.mp4", "predictions.json"]
    means = (out / "clip.mp4").read_text().split()
    assert len(means) == 26 and means[0] == "0" and means[-1] != "250"  # drawn over
    found = read(out)
    assert [image["frame_id"] for image in found["images"]] == [*range(26), *range(5)]
    assert [image["video_id"] for image in found["images"]] == [1] * 26 + [2] * 5
    assert [Path(video["file_name"]).name for video in found["videos"]] == ["clip.mp4", "b.mov"]
    assert {a["image_id"] for a in found["annotations"]} == set(range(14, 27))
    assert "clip.mp4: 13 instances in 26 frames" in text


def test_a_damaged_video_keeps_its_frames(predict, fake, tmp_path):
    out = tmp_path / "out"
    clips = [fake("a.mp4", frames=3, complaint="reader"), fake("c.mp4", frames=2)]
    (tmp_path / "my videos" / "b.mp4").write_text("hello")
    code, _, err = predict("colour", *clips, tmp_path / "my videos" / "b.mp4", "--output", out)
    assert code == 1 and "a.mp4: damaged; 3 frames" in err and "b.mp4: no video" in err
    assert len(read(out)["images"]) == 5 and names(out)[:2] == ["a.mp4", "c.mp4"]


def test_ctrl_c_leaves_a_whole_video(predict, fake, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return overlay(*args, **kwargs)

    drawing = fastinst.prediction.instance_files
    overlay = drawing.overlay
    monkeypatch.setattr(drawing, "overlay", interrupted)
    out = tmp_path / "out"
    clips = [fake(width=960, height=640, frames=25), fake("later.mp4")]
    code, _, err = predict("colour", *clips, "--output", out)
    assert code == 130 and "kept" in err
    count = len(read(out)["images"])
    assert 0 < count < 25 and len((out / "clip.mp4").read_text().split()) == count
    assert names(out) == ["clip.mp4", "predictions.json"]


@pytest.mark.parametrize("rotation", [0, 90])
def test_by_a_real_ffmpeg(tmp_path, rotation):
    try:
        ffmpeg = find_ffmpeg()
    except InputError as error:
        pytest.skip(str(error))
    plain, turned, out = tmp_path / "2:1 a.mp4", tmp_path / "turned.mp4", tmp_path / "out.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=size=161x121:rate=30000/1001:duration=1"]
    sound = ["-f", "lavfi", "-i", "sine=duration=0.5", "-pix_fmt", "yuv444p", f"file:{plain}"]
    subprocess.run([ffmpeg, "-loglevel", "error", *source, *sound], check=True)
    turn = ["-display_rotation", str(rotation), "-i", f"file:{plain}", "-c", "copy", str(turned)]
    subprocess.run([ffmpeg, "-loglevel", "error", *turn], check=True)

    video = Video.open(turned)
    size = (161, 121) if rotation == 0 else (121, 161)
    assert (video.width, video.height) == size and video.rate == Fraction(30000, 1001)
    frames = []
    with VideoWriter(out, video) as writer:
        for frame in video.frames():
            frames.append(frame)
            writer.write(frame)
    assert len(frames) == 30 and video.damage is None
    written = Video.open(out)
    assert (written.width, written.height) == (size[0] + 1, size[1] + 1)
    assert written.rate == video.rate
    again = list(written.frames())
    assert len(again) == 30
    difference = np.abs(again[7][:-1, :-1].astype(int) - frames[7])
    assert difference.mean() < 8
    says = subprocess.run([ffmpeg, "-i", str(out)], capture_output=True, text=True).stderr
    assert "Audio: aac" in says
