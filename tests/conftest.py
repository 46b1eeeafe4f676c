import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    """The same random numbers in a test whether it runs alone or among others."""
    torch.manual_seed(0)
