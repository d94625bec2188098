"""Models: loaded without trust, normalized to one plain ONNX graph, run by onnxruntime."""

from edgeopt.model.load import load_model
from edgeopt.model.normalize import normalize_model, parse_shape

__all__ = ["load_model", "normalize_model", "parse_shape"]
