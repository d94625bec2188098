"""Run a release that lies on a board by what its own manifest says; the host needs no copy."""

import hashlib
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgeopt.artifact import Bundle, BundleFile, Footprint, Release, TensorSpec
from edgeopt.board import Board
from edgeopt.board.facts import read_facts
from edgeopt.board.script import QUICK
from edgeopt.deploy.place import Place
from edgeopt.errors import BoardIncompatible, DeployFailed
from edgeopt.program import run_program

#: Bytes; the manifest of a model with thousands of inputs has as many.
MANIFEST_LIMIT = 4_000_000
#: Bytes that a small file takes beside what is in it, its folder's share included.
_FILE = 16_384


class _Manifest(BaseModel):
    """What a run needs to know; the rest is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    target: str
    files: tuple[BundleFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    footprint: Footprint
    features: tuple[str, ...]
    machine: str
    glibc: str
    threads: int
    core: str = ""


def run_installed(board: Board, place: Place, digest: str) -> None:
    """Run a release once on zeros: it must load, compute, and give outputs of its shapes.

    Where the board's disk has no room for them nothing is run: a full disk must not keep a board
    from going back to what it had.

    Raises what run_program raises, and DeployFailed where its manifest says nothing.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        bundle = _read_bundle(board, place, digest, Path(name))
        release = Release(
            board=board.name,
            kind=board.kind,
            app=place.app,
            digest=digest,
            path=str(place.release(digest)),
        )
        if not _has_room(board, place, bundle):
            return
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
            directory=Path(name),
        )


def _has_room(board: Board, place: Place, bundle: Bundle) -> bool:
    """Say whether inputs and outputs of one inference fit on the board's disk, with headers."""
    needed = sum(
        math.prod(each.shape) * np.dtype(each.dtype).itemsize + _FILE
        for each in (*bundle.inputs, *bundle.outputs)
    )
    return read_facts(board, folder=place.root).free >= needed


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
