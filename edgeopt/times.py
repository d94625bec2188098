"""Times of kernels that were measured on a kind of board: what later predictions start from."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from edgeopt.artifact import Fact, Method
from edgeopt.errors import ConfigError
from edgeopt.store import write_atomically

#: What one deployment may change of a kind's times: more is another load, not another kernel.
_LEAST, _MOST = 0.5, 2.0


class KernelTime(Fact):
    """One product with a stored weight, measured by itself."""

    #: Operator and form, in words: "MatMul INT4".
    kind: str
    #: ns of the usual call, without what any call takes: a model's shortest inference has many.
    ns: float = Field(gt=0)
    #: ns that the roofline says.
    bound: float = Field(gt=0)


class WholeTime(Fact):
    """What a whole model takes besides its products: the difference of what was measured."""

    #: Those whose kernels were measured for it.
    methods: tuple[Method, ...]
    #: Bytes of its products' weights as it came: they decide what the caches hold of one of them.
    weights: int = Field(default=0, ge=0)
    #: ns that products take in it for each that they take alone.
    share: float = Field(default=1, gt=0, le=1)
    #: ns measured of all else, and those of a pass over the values; 0 where it did not run there.
    ns: float = Field(default=0, ge=0)
    bound: float = Field(default=0, ge=0)
    #: Its 95th percentile, which limits are about, for each ns of its shortest inference.
    tail: float = Field(default=1, ge=1)
    #: What its plans took as a whole for each ns that their products do, by kind.
    scales: dict[str, float] = Field(default_factory=dict)


class Times(Fact):
    """All that was measured of one kind of board with so many threads."""

    schema_version: Literal[2] = 2
    #: Versions of other tools compile other kernels: what they measured does not count.
    edgeopt: str
    threads: int = Field(ge=1)
    #: Digest of the tiles that kernels were compiled with (digest_tiles): the same goes for others.
    tiles: str = ""
    #: By name_kernel.
    kernels: dict[str, KernelTime] = Field(default_factory=dict)
    #: By the sha256 of the model whose plans they are for.
    wholes: dict[str, WholeTime] = Field(default_factory=dict)

    def kernel(self, key: str, kind: str, bound: float, *, model: str = "") -> float:
        """Return the ns of a product: as measured, or as others of its kind are to their bound.

        model: sha256 of the one that the plan is for. In one that was never measured a product
        takes what it does where it takes longest.
        """
        scale, whole = self.scale(kind, model), self.wholes.get(model)
        if whole is not None:
            scale *= whole.share
        known = self.kernels.get(name_kernel(key, whole.weights)) if whole is not None else None
        if known is None:
            every = [each for name, each in self.kernels.items() if name.startswith(f"{key} ")]
            known = max(every, key=lambda each: each.ns, default=None)
        if known is not None:
            return known.ns * scale
        alike = [each for each in self.kernels.values() if each.kind == kind]
        return bound * scale * _ratio(alike or list(self.kernels.values()))

    def others(self, model: str, bound: float) -> float:
        """Return the ns of what is no product, in plans for a model."""
        known = self.wholes.get(model)
        own = [known] if known is not None and known.bound else list(self.wholes.values())
        return bound * _ratio(own)

    def scale(self, kind: str, model: str) -> float:
        """Return what products of a kind take in a model's plans for each ns that they should.

        Those of kinds that it came with are known from the whole. Where nothing told, it is the
        mean of what other models' plans did.
        """
        own = self.wholes.get(model)
        if own is not None and (kind in own.scales or own.bound):
            return own.scales.get(kind, 1.0)
        told = [each.scales[kind] for each in self.wholes.values() if kind in each.scales]
        return statistics.fmean(told) if told else 1.0

    def tail(self, model: str) -> float:
        """Return how much longer a limited inference takes than the shortest one."""
        known = self.wholes.get(model)
        every = [known] if known is not None and known.bound else list(self.wholes.values())
        return max((each.tail for each in every), default=1.0)

    def corrected(self, model: str, shares: Mapping[str, float], missing: float) -> "Times":
        """Spread the ns that a plan for a model took beyond its prediction over kinds of kernels.

        shares: ns predicted for each kind that the plan has and the model as it came has not: of
        the others more is known.
        """
        total = sum(shares.values())
        if total <= 0:
            return self
        factor = min(max(1 + missing / total, _LEAST), _MOST)
        scales = {kind: round(self.scale(kind, model) * factor, 3) for kind in shares}
        return self.learned(model, scales=scales)

    def learned(
        self, model: str, *, scales: Mapping[str, float] | None = None, tail: float | None = None
    ) -> "Times":
        """Return the table with what plans for a model taught of it as a whole."""
        found = self.wholes.get(model, WholeTime(methods=()))
        changed = {"scales": found.scales | dict(scales or {}), "tail": tail or found.tail}
        return self.model_copy(
            update={"wholes": self.wholes | {model: found.model_copy(update=changed)}}
        )


def name_kernel(key: str, weights: int) -> str:
    """Name a product, by its digest, among so many bytes of weights, to a power of two."""
    return f"{key} {weights.bit_length()}"


def _ratio(known: "list[KernelTime] | list[WholeTime]") -> float:
    """Return the measured ns for each ns of the bound."""
    bound = sum(each.bound for each in known)
    return sum(each.ns for each in known) / bound if bound else 1.0


def read_times(path: Path, *, edgeopt: str, threads: int, tiles: str = "") -> Times:
    """Read a file, strictly; none, or one of other kernels or threads, gives an empty table.

    So does one of another schema. Raises ConfigError for what is no such file.
    """
    empty = Times(edgeopt=edgeopt, threads=threads, tiles=tiles)
    try:
        found = Times.model_validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return empty
    except ValidationError as error:
        found_wrong = error.errors(include_url=False, include_input=False)
        if any(each["loc"] == ("schema_version",) for each in found_wrong):
            return empty
        first = found_wrong[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise ConfigError(
            f"{path} does not hold times of kernels",
            why=f"{place}: {first['msg']}",
            fix="remove it: the next deploy with a limit on latency measures again",
        ) from error
    same = (found.edgeopt, found.threads, found.tiles) == (edgeopt, threads, tiles)
    return found if same else empty


def write_times(path: Path, times: Times) -> None:
    """Replace a file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (times.model_dump_json(indent=1) + "\n").encode())
