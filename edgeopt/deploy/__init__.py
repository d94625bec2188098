"""Put a bundle on a board: preflight, upload, smoke run, one atomic switch, and the way back."""

from edgeopt.deploy.preflight import Survey, check_board, survey_board
from edgeopt.deploy.release import (
    Smoke,
    activate_release,
    deploy_bundle,
    discard_release,
    rollback_release,
    smoke_release,
    stage_bundle,
)
from edgeopt.deploy.remove import remove_application
from edgeopt.deploy.signature import Signed, Signer, read_allowed, sign_release
from edgeopt.deploy.status import HistoryEntry, Status, read_history, read_status

__all__ = [
    "HistoryEntry",
    "Signed",
    "Signer",
    "Smoke",
    "Status",
    "Survey",
    "activate_release",
    "check_board",
    "deploy_bundle",
    "discard_release",
    "read_allowed",
    "read_history",
    "read_status",
    "remove_application",
    "rollback_release",
    "sign_release",
    "smoke_release",
    "stage_bundle",
    "survey_board",
]
