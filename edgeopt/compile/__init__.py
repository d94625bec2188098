"""ONNX to code for one CPU: kernels of our own, weights in a file, a bundle that is ready to go."""

from edgeopt.compile.build import compile_model
from edgeopt.compile.import_onnx import check_operators

__all__ = ["check_operators", "compile_model"]
