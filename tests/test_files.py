import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._utils import ExceptionWrapper

from fastinst.errors import InputError, run
from fastinst.files import (
    check_output_file,
    make_output_folder,
    remove_unfinished,
    sync_folder,
    write_whole,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with write_whole(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new" and names(tmp_path) == ["file"]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), write_whole(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_the_former_file_is_kept_under_its_other_name(tmp_path):
    path, former = tmp_path / "file", tmp_path / "former"
    for content in (b"1", b"2", b"3"):
        with write_whole(path, former) as file:
            file.write(content)
    assert (path.read_bytes(), former.read_bytes()) == (b"3", b"2")
    with pytest.raises(RuntimeError), write_whole(path, former) as file:
        raise RuntimeError
    assert (path.read_bytes(), former.read_bytes()) == (b"3", b"2")
    # As a process leaves them that ends between the two renames, with one it had not come to.
    former.unlink()
    former.hardlink_to(path)
    with write_whole(path, former) as file:
        file.write(b"4")
    assert (path.read_bytes(), former.read_bytes()) == (b"4", b"3")
    assert names(tmp_path) == ["file", "former"]


def test_what_a_killed_process_leaves_can_be_removed(tmp_path):
    child = os.fork()
    if child == 0:
        with write_whole(tmp_path / "file") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = names(tmp_path)
    assert left.startswith(".file.")
    (tmp_path / ".other.abc.unfinished").touch()
    (tmp_path / ".file.settings").touch()
    remove_unfinished(tmp_path / "file")
    assert names(tmp_path) == [".file.settings", ".other.abc.unfinished"]
    remove_unfinished(tmp_path / "no folder" / "file")


def test_folders_that_cannot_be_synchronised_are_no_error(tmp_path):
    sync_folder(tmp_path)
    sync_folder(tmp_path / "none")


def test_what_cannot_be_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="none"), write_whole(tmp_path / "none" / "file"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder"), write_whole(tmp_path / "folder") as file:
        file.write(b"new")
    assert names(tmp_path) == ["folder"]
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file"):
            make_output_folder(path)
    assert make_output_folder(tmp_path / "a" / "b").is_dir()


def test_run_turns_errors_into_exit_codes(capsys):
    def fail(error):
        raise error

    for main, code, message in (
        (lambda: None, None, ""),
        (lambda: 1, 1, ""),
        (lambda: fail(InputError("bad file")), 2, "error: bad file\n"),
        (lambda: fail(KeyboardInterrupt()), 130, "interrupted\n"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run(main)
        assert exit_.value.code == code
        assert capsys.readouterr().err == message
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_run_shows_a_worker_error_without_its_traceback(capsys):
    # A real DataLoader would do, but takes 5 s to shut down after an error.
    try:
        raise InputError("x.png: cannot be decoded")
    except InputError:
        error = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(SystemExit):
        run(error.reraise)
    assert capsys.readouterr().err == "error: x.png: cannot be decoded\n"


def test_an_output_file_is_checked_before_the_work(tmp_path):
    check_output_file(tmp_path / "new folder" / "numbers.json")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new folder"]
    with pytest.raises(InputError, match="new folder: it is a folder"):
        check_output_file(tmp_path / "new folder")


def test_threads_leave_the_permissions_of_files_alone(tmp_path, monkeypatch):
    def slow_umask(mask):
        former = umask(mask)
        time.sleep(0.01)
        return former

    def write(number):
        with write_whole(tmp_path / str(number)) as file:
            file.write(b"x")

    umask = os.umask
    monkeypatch.setattr(os, "umask", slow_umask)
    before = umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(16)))
    finally:
        after = umask(before)
    assert after == 0o027
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
