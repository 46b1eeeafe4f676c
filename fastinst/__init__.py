"""FastInst: real-time instance segmentation in plain PyTorch."""

from fastinst.config import list_models
from fastinst.model import create_model
from fastinst.results import Instances, postprocess

__all__ = [
    "Instances",
    "create_model",
    "list_models",
    "postprocess",
]
