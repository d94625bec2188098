"""Run a release that lies on a board by what its own manifest says; the host needs no copy."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edgeopt.artifact import Bundle, Release, Runnable
from edgeopt.board import Board
from edgeopt.board.script import QUICK
from edgeopt.deploy.place import Place
from edgeopt.errors import BoardIncompatible, DeployFailed
from edgeopt.program import run_program
from edgeopt.scratch import scratch

#: Bytes; the manifest of a model with thousands of inputs has as many.
MANIFEST_LIMIT = 4_000_000
#: Bytes that a small file takes beside what is in it, its folder's share included.
_FILE = 16_384


class _Manifest(Runnable, extra="ignore"):
    """What a run needs to know; the rest of a manifest is not looked at."""


def run_installed(board: Board, place: Place, digest: str, *, free: int | None) -> bool:
    """Run a release once on zeros: it must load, compute, and give outputs of its shapes.

    Where the board's disk, with so many bytes free, has no room for them nothing is run, and
    False returned: a full disk must not keep a board from going back to what it had.

    Raises what run_program raises, and DeployFailed where its manifest says nothing.
    """
    with scratch() as folder:
        bundle = _read_bundle(board, place, digest, folder)
        release = Release(
            board=board.name,
            kind=board.kind,
            app=place.app,
            digest=digest,
            path=str(place.release(digest)),
        )
        if free is not None and free < _needed(bundle):
            return False
        feeds: dict[str, NDArray[Any]] = {
            each.name: np.zeros((1, *each.shape), each.dtype) for each in bundle.inputs
        }
        run_program(
            release,
            bundle,
            board,
            feeds=feeds,
            warmup=0,
            iterations=1,
            threads=bundle.threads,
            directory=folder,
        )
    return True


def _needed(bundle: Bundle) -> int:
    """Return the bytes that inputs and outputs of one inference take on a disk, with headers."""
    return sum(
        math.prod(each.shape) * np.dtype(each.dtype).itemsize + _FILE
        for each in (*bundle.inputs, *bundle.outputs)
    )


def _read_bundle(board: Board, place: Place, digest: str, folder: Path) -> Bundle:
    local = folder / "manifest.json"
    try:
        board.get(
            place.release(digest) / "manifest.json", local, limit=MANIFEST_LIMIT, timeout=QUICK
        )
        text = local.read_bytes()
        if hashlib.sha256(text).hexdigest() != digest:
            raise DeployFailed(f"the manifest of release {digest[:12]} is damaged")
        facts = _Manifest.model_validate_json(text)
    except (BoardIncompatible, ValidationError) as error:
        raise DeployFailed(
            f"release {digest[:12]} does not say how it is run",
            why=f"its manifest cannot be read: {type(error).__name__}",
            fix="deploy it again",
        ) from error
    return Bundle(path=folder, digest=digest, **dict(facts))
