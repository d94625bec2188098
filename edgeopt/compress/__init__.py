"""Compression: plans as data, and their result as standard ONNX."""

from edgeopt.compress.candidate import Candidate, Cost, Fit, Infeasible, Stopped
from edgeopt.compress.choices import possible_choices
from edgeopt.compress.cost import predict_footprint
from edgeopt.compress.fit import Search, fit_plan, replay_plan, trace_front
from edgeopt.compress.pace import pace_of, predict_latency
from edgeopt.compress.plan import apply_plan, make_plan
from edgeopt.compress.pruning import Pruned, apply_cuts, measure_units, prune_model
from edgeopt.compress.sensitivity import Sensitivity, draw_calibration, measure_sensitivity
from edgeopt.compress.shortfall import infeasible

__all__ = [
    "Candidate",
    "Cost",
    "Fit",
    "Infeasible",
    "Pruned",
    "Search",
    "Sensitivity",
    "Stopped",
    "apply_cuts",
    "apply_plan",
    "draw_calibration",
    "fit_plan",
    "infeasible",
    "make_plan",
    "measure_sensitivity",
    "measure_units",
    "pace_of",
    "possible_choices",
    "predict_footprint",
    "predict_latency",
    "prune_model",
    "replay_plan",
    "trace_front",
]
