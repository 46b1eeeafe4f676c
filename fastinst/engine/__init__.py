"""The engine: a trained model made ready to run as fast as the machine can."""

from fastinst.engine.network import PreparedNetwork
from fastinst.engine.prepare import prepare

__all__ = ["PreparedNetwork", "prepare"]
