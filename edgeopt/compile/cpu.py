"""What the kernels need to know of a CPU, derived from a target's data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import tvm

from edgeopt.target import Target
from edgeopt.tiles import Tile, TileKey

_TRIPLES = {
    "aarch64": "aarch64-linux-gnu",
    "arm": "armv7a-linux-gnueabihf",
    "x86_64": "x86_64-linux-gnu",
}
#: Per core, where a target does not say: the smallest L2 among the boards we describe.
_SMALL_L2 = 256 * 1024


#: LLVM's names of the vector instructions that kernels for x86-64 count on.
_VECTORS = {"avx2": "+avx2", "avx512f": "+avx512f", "avx512_vnni": "+avx512vnni"}
#: 64-bit cores that issue in program order (Arm's technical reference manuals).
_IN_ORDER = ("cortex-a35", "cortex-a53", "cortex-a55")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One kind of core, as the tile chooser and the code generator see it."""

    machine: str
    #: LLVM's -mcpu, target triple and extra attributes.
    core: str
    triple: str
    attributes: tuple[str, ...] = ()
    threads: int = 1
    #: float32 lanes of one vector register, and how many registers there are.
    lanes: int
    registers: int
    #: Bytes of L2 that one core can count on.
    l2: int = _SMALL_L2
    #: Load A as vectors along K and multiply by element (NEON), instead of broadcasting (x86).
    vector_a: bool = False
    #: Cost of bringing in one value of A, in loads of one vector of B.
    a_cost: float = 0.25
    #: Independent accumulators that hide the latency of fused multiply-add.
    chains: int = 8
    #: Fused multiply-adds per load below which the loads are the limit.
    intensity: float = 2.0
    #: Issues in program order: LLVM then unrolls and loads further ahead.
    in_order: bool = False
    dot_product: bool = False
    #: Multiplies int8 matrices of 2 x 8 by 8 x 2 (Armv8.6-A, FEAT_I8MM).
    matrix_product: bool = False
    #: Has vector arithmetic on float16.
    half: bool = False
    #: Permutes the float32 lanes of a vector by numbers in another (AVX2 and up).
    permutes: bool = False
    vnni: bool = False
    #: Has tile registers for codes.
    amx: bool = False
    #: Tiles that were measured to be better than those that would be chosen.
    tiles: Mapping[TileKey, Tile] = field(default_factory=dict, hash=False)

    def target(self) -> tvm.target.Target:
        """Spell this CPU as TVM does."""
        options: dict[str, object] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.core,
            "num-cores": self.threads,
        }
        if self.attributes:
            options["mattr"] = list(self.attributes)
        if self.machine == "arm":
            options["mfloat-abi"] = "hard"
        return tvm.target.Target(options)


def describe_cpu(target: Target, tiles: Mapping[TileKey, Tile] | None = None) -> Cpu:
    """Derive the kernels' view of the cluster that models run on; tiles: those to prefer."""
    cluster = target.cluster[0]
    features = frozenset(target.isa.features)
    l2 = cluster.l2 or _SMALL_L2
    shared = cluster.count if cluster.l2_shared else 1
    lanes = target.lanes
    # NEON multiplies by one lane of a vector of A; x86 broadcasts each value from memory,
    # for free inside the instruction with AVX-512 only.
    neon = target.isa.machine != "x86_64"
    return Cpu(
        machine=target.isa.machine,
        core=cluster.core,
        triple=_TRIPLES[target.isa.machine],
        attributes=_attributes(target.isa.machine, features),
        threads=cluster.count,
        lanes=lanes,
        # AVX-512 and 64-bit NEON have 32 of them.
        registers=32 if lanes == 16 or target.isa.machine == "aarch64" else 16,
        l2=l2 // shared,
        vector_a=neon,
        a_cost=0.6 if neon else 0.25 if lanes == 16 else 0.5,
        # Latency times throughput of FMA: 4 x 2 on Zen and Skylake, 7 x 1 on Cortex-A72.
        chains={16: 12, 8: 10}.get(lanes, 8),
        in_order=cluster.core in _IN_ORDER,
        dot_product="asimddp" in features,
        matrix_product="i8mm" in features,
        half=target.multiplies_halves,
        permutes=target.isa.machine == "x86_64" and not features.isdisjoint(("avx2", "avx512f")),
        vnni="avx512_vnni" in features,
        amx={"avx512_vnni", "amx_int8"} <= features,
        tiles={} if tiles is None else tiles,
    )


def _attributes(machine: str, features: frozenset[str]) -> tuple[str, ...]:
    """Name what the kernels use and the core's name does not imply to LLVM."""
    if machine == "arm":
        return ("+neon", "+vfp4")
    if machine == "aarch64":
        # LLVM knows of cores with i8mm that they have SVE, which a target may not vouch for.
        refused = ("-sve",) if "i8mm" in features and "sve" not in features else ()
        return (*(("+fullfp16",) if "asimdhp" in features else ()), *refused)
    # Of the levels of the x86-64 psABI, which a probed target names as its core, the last one has
    # no VNNI, and one below it may have been named for something else that is missing.
    return tuple(name for feature, name in _VECTORS.items() if feature in features)
