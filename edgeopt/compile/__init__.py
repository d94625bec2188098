"""ONNX to code for one CPU: kernels of our own, weights in a file, a bundle that is ready to go."""

from edgeopt.compile.build import compile_model, ship_tokenizer
from edgeopt.compile.import_onnx import check_operators

__all__ = ["check_operators", "compile_model", "ship_tokenizer"]
