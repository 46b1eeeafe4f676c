"""What a measurement says of itself."""

from pathlib import Path

import fastinst
from fastinst.records import describe_command

PACKAGE = Path(fastinst.__file__).parent


def test_a_command_can_be_repeated_elsewhere():
    module = [str(PACKAGE / "loading_timing.py"), "/somewhere/my data", "--csv", "rows/a.csv"]
    assert describe_command(module) == (
        "python -m fastinst.loading_timing 'my data' --csv rows/a.csv"
    )
    assert describe_command(["benchmark.py", "--ops"]) == "python benchmark.py --ops"
    assert describe_command(["/here/benchmark.py", "d1"]) == "python benchmark.py d1"
