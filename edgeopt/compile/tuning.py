"""Which tiles a compile chooses, and which others there are: what a sweep on a board tries."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from edgeopt.artifact import Model
from edgeopt.compile.cpu import Cpu, describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.kernels import code_products, conv_tiles, gemm, integer, integer_conv
from edgeopt.compile.lower import lower_module
from edgeopt.target import Target
from edgeopt.tiles import Tile, TileKey

#: What lists the tiles of each kernel that has a choice.
_RANKS: dict[str, Callable[[Cpu, TileKey], list[Tile]]] = {
    gemm.KIND: gemm.rank_tiles,
    gemm.PACKED: gemm.rank_tiles,
    gemm.ROW: gemm.rank_tiles,
    conv_tiles.DENSE: conv_tiles.rank_tiles,
    conv_tiles.ODD: conv_tiles.rank_tiles,
    integer.KIND: integer.rank_tiles,
    integer_conv.KIND: integer.rank_tiles,
    code_products.KIND: code_products.rank_tiles,
    code_products.SINGLE: code_products.rank_tiles,
    code_products.AMX: code_products.rank_tiles,
}


@dataclass(frozen=True, slots=True)
class _Asked(Mapping[TileKey, Tile]):
    """Knows no tile, and which were asked for."""

    keys_asked: list[TileKey] = field(default_factory=list)

    def __getitem__(self, key: TileKey) -> Tile:
        self.keys_asked.append(key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[TileKey]:
        return iter(())

    def __len__(self) -> int:
        return 0


def find_choices(model: Model, target: Target) -> tuple[TileKey, ...]:
    """List the products of a model whose tiles are chosen, each once, in the model's order."""
    asked = _Asked()
    lower_module(import_model(model.path), describe_cpu(target, asked))
    return tuple(dict.fromkeys(asked.keys_asked))


def rank_tiles(key: TileKey, target: Target) -> list[Tile]:
    """List the tiles that a product may have, the default first; none for an unknown kernel."""
    rank = _RANKS.get(key.kind)
    return rank(describe_cpu(target), key) if rank else []


def check_tiles(
    tiles: Mapping[TileKey, Tile], target: Target
) -> tuple[dict[TileKey, Tile], list[str]]:
    """Return the tiles that are possible, and why each of the others is not."""
    good: dict[TileKey, Tile] = {}
    refused = []
    for key, tile in tiles.items():
        if key.kind not in _RANKS:
            refused.append(f"{key}: there is no such kernel")
        elif tile not in rank_tiles(key, target):
            refused.append(f"{key}: a tile of {tile[0]}x{tile[1]} is impossible")
        else:
            good[key] = tile
    return good, refused
