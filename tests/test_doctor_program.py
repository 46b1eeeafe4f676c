"""python -m fastinst.doctor DATA."""

import json
import shlex
import subprocess
import sys

from PIL import Image
from small_coco import write_coco
from test_data_doctor import scene


def doctor(*arguments):
    command = [sys.executable, "-m", "fastinst.doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_program_on_a_data_set(tmp_path):
    folder, out = tmp_path / "a set", tmp_path / "its output"
    source = write_coco(folder, [scene(i) for i in range(16)])
    options = ("--model", "fastinst-d1-r18-192", "--size", 64, "--output", out)
    done = doctor(source, *options)
    assert done.returncode == 0, done.stderr
    assert "16 images" in done.stdout and str(out / "contact_sheet.jpg") in done.stdout
    with Image.open(out / "contact_sheet.jpg") as sheet:
        assert sheet.width > 1600
    content = json.loads(source.read_text())
    content["annotations"] = []
    (folder / "empty.json").write_text(json.dumps(content))
    done = doctor(folder / "empty.json", "--images", folder / "val", *options)
    assert done.returncode == 1
    assert "fatal" in done.stdout and "empty.json" in done.stdout


def test_a_wrong_path_is_one_line():
    done = doctor("/no/such data")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("/no/such data: no such file or folder")
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough():
    command = f"{shlex.quote(sys.executable)} -m fastinst.doctor | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("fastinst")
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr
