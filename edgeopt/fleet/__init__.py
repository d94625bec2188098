"""Push one release to many boards: canary first, a few at a time, and go on where it stopped."""

from edgeopt.fleet.file import Fleet, FleetBoard, load_fleet
from edgeopt.fleet.push import Connect, Group, Progress, push_fleet
from edgeopt.fleet.state import Outcome, State, StateFile

__all__ = [
    "Connect",
    "Fleet",
    "FleetBoard",
    "Group",
    "Outcome",
    "Progress",
    "State",
    "StateFile",
    "load_fleet",
    "push_fleet",
]
