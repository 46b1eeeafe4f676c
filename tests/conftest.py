import os

import pytest
import torch


def pytest_configure():
    """FASTINST_DEVICE=cuda runs the tests on a GPU, wherever they do not choose a device."""
    if os.environ.get("FASTINST_DEVICE"):
        torch.set_default_device(os.environ["FASTINST_DEVICE"])


@pytest.fixture(autouse=True)
def _seed():
    """The same random numbers in a test whether it runs alone or among others."""
    torch.manual_seed(0)
