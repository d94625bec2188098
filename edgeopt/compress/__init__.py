"""Compression: plans as data, and their result as standard ONNX."""

from edgeopt.compress.choices import possible_choices
from edgeopt.compress.cost import predict_footprint
from edgeopt.compress.fit import Candidate, Fit, Infeasible, fit_plan, trace_front
from edgeopt.compress.plan import apply_plan, make_plan
from edgeopt.compress.pruning import Pruned, measure_units, prune_model
from edgeopt.compress.sensitivity import Sensitivity, draw_calibration, measure_sensitivity

__all__ = [
    "Candidate",
    "Fit",
    "Infeasible",
    "Pruned",
    "Sensitivity",
    "apply_plan",
    "draw_calibration",
    "fit_plan",
    "make_plan",
    "measure_sensitivity",
    "measure_units",
    "possible_choices",
    "predict_footprint",
    "prune_model",
    "trace_front",
]
