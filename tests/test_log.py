"""log.csv through interruptions, torn lines and other versions; TensorBoard's files."""

import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinst.errors import InputError
from fastinst.metrics.measures import MEASURES
from fastinst.training.log import Log, read_log


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def written(folder, steps, step=0):
    said = []
    log = Log(folder, step, said.append)
    for number in steps:
        log.write({"step": number, "loss": 1 / number, "memory_mib": 1000.5 + number})
    log.close()
    return said


def steps(folder):
    return [row["step"] for row in read_log(folder / "log.csv")]


def test_rows_have_all_columns_and_are_there_at_once(tmp_path):
    log = Log(tmp_path)
    row = {name: i for i, name in enumerate(log.columns, start=1)} | {"lr": 1e-4 / 3}
    log.write(row)
    log.write({"step": 123_456_789, "AP": 12.5, "loss": float("nan")})
    header, first, second = (tmp_path / "log.csv").read_text().splitlines()
    assert header == (
        "step,epoch,seconds,lr,gradient_norm,loss,loss_ce,loss_mask,loss_dice,loss_proposal,"
        "AP,AP50,images_per_second,memory_mib"
    )
    assert first.startswith("1,2,3,3.3333333e-05,5,")
    assert second.startswith("123456789,,,,,nan,")
    assert read_log(tmp_path / "log.csv")[0] == row | {"lr": 3.3333333e-05}
    log.close()


def test_a_resumed_run_keeps_the_rows_up_to_its_step_unchanged(tmp_path):
    written(tmp_path, range(1, 8))
    before = (tmp_path / "log.csv").read_text().splitlines()
    written(tmp_path, [6, 7, 8], step=5)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[:6] == before[:6] and steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    written(tmp_path, [1])  # a new run starts a new log
    assert steps(tmp_path) == [1]
    (tmp_path / "log.csv").unlink()
    written(tmp_path, [4], step=3)
    assert steps(tmp_path) == [4]


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, 150))
def test_wherever_a_killed_process_stopped_writing(tmp_path_factory, cut):
    """Whole rows are kept; what is left of one is never taken for a row."""
    folder = tmp_path_factory.mktemp("torn")
    written(folder, range(8, 13))
    whole = (folder / "log.csv").read_text()
    torn = whole[: max(len(whole) - cut, len(whole.splitlines()[0]) + 1)]
    (folder / "log.csv").write_text(torn)
    written(folder, [12], step=11)
    kept = list(range(8, 8 + torn.count("\n") - 1))
    assert steps(folder) == [number for number in kept if number < 12] + [12]
    assert all(
        row["loss"] == float(f"{1 / row['step']:.8g}") for row in read_log(folder / "log.csv")
    )


def test_a_torn_line_that_another_run_went_on_after(tmp_path):
    written(tmp_path, [1, 2])
    path = tmp_path / "log.csv"
    path.write_text(path.read_text() + "3,0.5,1.2" + "3,0.5,1.2,1e-4\n" + "4" + "," * 13 + "\n")
    assert steps(tmp_path) == [1, 2, 4]


def test_logs_of_other_versions_are_read_by_their_columns(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,AP,speed\n1,3.5,9\n2,,9\n")
    written(tmp_path, [3], step=2)
    assert read_log(path)[:2] == [{"step": 1, "AP": 3.5}, {"step": 2}]


def test_what_a_run_was_judged_by_before_keeps_its_columns(tmp_path):
    log = Log(tmp_path)
    log.write({"step": 1, "AP": 2.5, "AP50": 4.0})
    log.close()
    log = Log(tmp_path, step=1, measure=MEASURES["panoptic"])
    log.write({"step": 2, "PQ": 1.5})
    log.close()
    assert log.columns[-7:-2] == ("AP", "AP50", "PQ", "SQ", "RQ")
    rows = [{"step": 1, "AP": 2.5, "AP50": 4}, {"step": 2, "PQ": 1.5}]
    assert read_log(tmp_path / "log.csv") == rows
    log = Log(tmp_path, measure=MEASURES["semantic"])  # a new run
    log.close()
    assert log.columns[-4:-2] == ("mIoU", "accuracy")


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\n", None])
def test_what_is_no_log_is_refused(tmp_path, content):
    path = tmp_path / "log.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="log.csv"):
        read_log(path)
    if content:
        with pytest.raises(InputError, match="log.csv"):
            Log(tmp_path, step=1)


@given(head=st.sampled_from([b"", b"step,loss\n", b"step\r\n1\r\n"]), rest=st.binary())
def test_any_bytes_are_rows_or_an_input_error(tmp_path_factory, head, rest):
    """As a file system may leave the end of a file when the power fails."""
    path = tmp_path_factory.getbasetemp() / "log.csv"
    path.write_bytes(head + rest)
    try:
        rows = read_log(path)
    except InputError:
        assert not head
    else:
        assert all(isinstance(row["step"], int) for row in rows)
        assert not head.endswith(b"1\r\n") or rows[0] == {"step": 1}


def test_a_full_disk_is_an_input_error(tmp_path):
    log = Log(tmp_path)
    log._file.close()
    log._file = open("/dev/full", "w")
    with pytest.raises(InputError, match="log.csv: No space left"):
        log.write({"step": 1})
    with pytest.raises(OSError):
        log.close()


def test_without_tensorboard_it_is_said_once(tmp_path):
    (line,) = written(tmp_path, [1, 2])
    assert line.startswith("no TensorBoard (") and "log.csv" in line


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    scalars, made = [], []

    class SummaryWriter:
        def __init__(self, place, purge_step):
            made.append((place, purge_step))

        def add_scalar(self, *scalar):
            scalars.append(scalar)

        def close(self):
            made.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    folder = tmp_path / "my run"
    folder.mkdir()
    (line,) = written(folder, [5], step=4)
    place = str(folder / "tensorboard")
    assert f"tensorboard --logdir '{place}'" in line
    assert scalars == [("loss", 0.2, 5), ("memory_mib", 1005.5, 5)]
    assert made == [(place, 5), "closed"]
