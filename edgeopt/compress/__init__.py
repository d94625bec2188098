"""Compression: plans as data, and their result as standard ONNX."""

from edgeopt.compress.choices import possible_choices
from edgeopt.compress.cost import predict_footprint
from edgeopt.compress.fit import Candidate, Fit, Infeasible, fit_plan
from edgeopt.compress.plan import apply_plan, make_plan

__all__ = [
    "Candidate",
    "Fit",
    "Infeasible",
    "apply_plan",
    "fit_plan",
    "make_plan",
    "possible_choices",
    "predict_footprint",
]
