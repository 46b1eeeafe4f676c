import pytest
import torch
from torch._utils import ExceptionWrapper

from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.files import check_output_file, make_output_folder, write_whole


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


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    for name in ("cuda:99", "gpu", ""):
        with pytest.raises(InputError, match=f"device '{name}'"):
            choose_device(name)


def test_an_output_file_is_checked_before_the_work(tmp_path):
    check_output_file(tmp_path / "new folder" / "numbers.json")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new folder"]
    with pytest.raises(InputError, match="new folder: it is a folder"):
        check_output_file(tmp_path / "new folder")
