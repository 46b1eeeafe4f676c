"""FastInst: real-time instance segmentation in plain PyTorch."""

from fastinst.config import list_models
from fastinst.model import create_model
from fastinst.official import load_official
from fastinst.predictor import Predictor
from fastinst.results import Instances, postprocess
from fastinst.segments import Segment, SegmentMap
from fastinst.weights import load_model, load_weights

__all__ = [
    "Instances",
    "Predictor",
    "Segment",
    "SegmentMap",
    "create_model",
    "list_models",
    "load_model",
    "load_official",
    "load_weights",
    "postprocess",
]
