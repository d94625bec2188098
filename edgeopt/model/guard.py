"""What is checked of a model's files before any library parses them or reads their data."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from edgeopt.errors import ModelError
from edgeopt.units import format_bytes

#: A protobuf message cannot be larger; https://protobuf.dev/programming-guides/proto-limits/.
MESSAGE_LIMIT = 2**31 - 1
_FIX = "export the model again, with its data in one file beside it"


class External(BaseModel):
    """One tensor that says its data lies in another file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    location: str
    offset: int
    #: None where the file does not say: up to the end.
    length: int | None
    #: What shape and element type need, in bytes.
    needed: int


def check_model_file(path: Path) -> Path:
    """Return the real path of a regular file of a size that ONNX can have."""
    try:
        real = path.resolve(strict=True)
        facts = real.stat()
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{path} cannot be opened",
            why=getattr(error, "strerror", "") or str(error),
            fix="name an .onnx file that exists",
        ) from error
    if not stat.S_ISREG(facts.st_mode):
        raise ModelError(f"{path} is not a regular file", fix="name an .onnx file")
    if not 0 < facts.st_size <= MESSAGE_LIMIT:
        raise ModelError(
            f"{path} cannot be an ONNX file",
            why=f"it has {format_bytes(facts.st_size)}; ONNX allows 1 B to 2.1 GB",
            fix="keep large weights as external data beside the model",
        )
    return real


def check_external(entries: Iterable[External], folder: Path) -> None:
    """Refuse external data that is not a plain, single-linked file inside folder.

    A model could otherwise read any file of the user: CVE-2022-25882, CVE-2024-27318 and
    CVE-2026-34446 are this with `..`, links and hard links.
    """
    root = folder.resolve(strict=True)
    for entry in entries:
        reason = _refusal(entry, root)
        if reason:
            raise ModelError(
                f"the external data of tensor {entry.tensor!r} is refused", why=reason, fix=_FIX
            )


def _refusal(entry: External, root: Path) -> str:
    """Say why an entry is refused, or return an empty string."""
    location = PurePosixPath(entry.location)
    if not entry.location or "\0" in entry.location or "\\" in entry.location:
        return f"{entry.location!r} is not a file name"
    if location.is_absolute() or ".." in location.parts:
        return f"{entry.location!r} leads out of the model's folder"
    path = root / location
    try:
        # A link anywhere on the way makes the real path another one.
        outside = path.resolve(strict=True) != path
        facts = os.lstat(path)
    except (OSError, RuntimeError) as error:
        return f"{entry.location!r} cannot be opened: {error.__class__.__name__}"
    if outside or not stat.S_ISREG(facts.st_mode):
        return f"{entry.location!r} is not a regular file inside the model's folder"
    if facts.st_nlink != 1:
        return f"{entry.location!r} has {facts.st_nlink} hard links"
    return _range_refusal(entry, facts.st_size)


def _range_refusal(entry: External, size: int) -> str:
    """Say why offset and length do not fit the file or the tensor, or return an empty string."""
    length = size - entry.offset if entry.length is None else entry.length
    if entry.offset < 0 or length < 0 or entry.offset + length > size:
        return f"bytes {entry.offset} to {entry.offset + length} are not in a file of {size} bytes"
    if length != entry.needed:
        return f"it has {length} bytes where its shape needs {entry.needed}"
    return ""
