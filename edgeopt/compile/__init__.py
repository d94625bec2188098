"""ONNX to code for one CPU: kernels of our own, weights in a file, a bundle that is ready to go."""

from edgeopt.compile.build import compile_model, ship_tokenizer

__all__ = ["compile_model", "ship_tokenizer"]
