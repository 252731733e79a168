"""Kinds of projectors: how many parameters each has, and how many tokens of the decoder's context an image costs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from imp_kit.errors import SettingError
from imp_kit.model.config import ImpConfig
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns x rows of tiles that LLaVA-NeXT chooses from.
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


class Projector(NamedTuple):
    """A kind of projector: who uses it, its parameters, and the image tokens that it makes."""

    name: str
    used_by: str
    parameters: int
    tokens: int


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    """Parameters of a linear layer."""
    return inputs * outputs + bias * outputs


def mlp(vision_width: int, width: int) -> int:
    """Parameters of LLaVA-1.5's and Imp's projector: two linear layers around a GELU."""
    return linear(vision_width, width) + linear(width, width)


def q_former(
    vision_width: int, width: int, *, hidden: int = 768, layers: int = 12, inner: int = 3072, queries: int = 32
) -> int:
    """Parameters that work on an image in BLIP-2's Q-Former (arXiv 2301.12597), and those of the layer after it.

    In each layer the queries attend to each other, in each second one also to the image's features. The paper counts
    188 M, with the parts for text that its training needs. Sizes are the paper's: BERT-base, 32 queries.
    """
    norm = 2 * hidden
    layer = 4 * linear(hidden, hidden) + norm + linear(hidden, inner) + linear(inner, hidden) + norm
    cross = 2 * linear(hidden, hidden) + 2 * linear(vision_width, hidden) + norm
    return queries * hidden + norm + layers * layer + layers // 2 * cross + linear(hidden, width)


def perceiver(
    vision_width: int, width: int, *, layers: int = 6, heads: int = 16, head_dim: int = 128, latents: int = 64
) -> int:
    """Parameters of Flamingo's Perceiver resampler (arXiv 2204.14198) and of a linear layer to the decoder's width.

    In each layer the latents attend to the image's features and to themselves. The paper counts 194 M for features
    1536 wide, without that last layer. The other sizes are the paper's.
    """
    norm, inner = 2 * vision_width, heads * head_dim
    attention = 4 * linear(vision_width, inner, bias=False) + 2 * norm
    feed_forward = norm + 2 * linear(vision_width, 4 * vision_width, bias=False)
    return latents * vision_width + norm + layers * (attention + feed_forward) + linear(vision_width, width)


def kinds(config: ImpConfig) -> list[Projector]:
    """The kinds between the tower and the decoder of a checkpoint."""
    vision_width, width, patches = config.vision.hidden_size, config.decoder.hidden_size, config.vision.num_patches
    return [
        Projector("linear", "LLaVA", linear(vision_width, width), patches),
        Projector("MLP", "LLaVA-1.5, Imp", mlp(vision_width, width), patches),
        Projector("Q-Former", "BLIP-2", q_former(vision_width, width), 32),
        Projector("Perceiver resampler", "Flamingo", perceiver(vision_width, width), 64),
    ]


def costs(config: ImpConfig) -> "DataFrame":
    """What each kind costs: parameters, image tokens, their part of the context, and their keys and values in 16 bits.

    MB are 1e6 bytes, of all layers.
    """
    require("notebooks", "pandas", what="A table")
    from pandas import DataFrame

    decoder = config.decoder
    rows = [
        {
            "projector": kind.name,
            "used by": kind.used_by,
            "parameters": f"{kind.parameters / 1e6:.1f} M",
            "image tokens": kind.tokens,
            "part of the context": f"{kind.tokens / decoder.max_positions:.0%}",
            "keys and values": f"{2 * kind.tokens * decoder.kv_values_per_token / 1e6:.0f} MB",
        }
        for kind in kinds(config)
    ]
    return DataFrame(rows)


def choose_grid(size: tuple[int, int], tile: int, grids: Sequence[tuple[int, int]] = GRIDS) -> tuple[int, int]:
    """The grid of tiles, (columns, rows), that LLaVA-NeXT's AnyRes takes for an image of `size` (width, height).

    The image is scaled to fit into the grid. The grid that keeps most of its pixels wins (never more than it has), then
    the one that leaves fewest pixels of the grid empty. Raises SettingError for sizes that are not positive.
    """
    width, height = size
    if min(width, height, tile) < 1:
        raise SettingError(
            f"An image of {width} x {height} and tiles of {tile} pixels make no grid; give sizes from 1."
        )

    def quality(grid: tuple[int, int]) -> tuple[int, int]:
        columns, rows = grid[0] * tile, grid[1] * tile
        scale = min(columns / width, rows / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - columns * rows

    return max(grids, key=quality)


def any_resolution_tokens(size: tuple[int, int], tile: int, patches: int) -> int:
    """Image tokens of an image of `size` in tiles of `tile` pixels and an overview, each of `patches` tokens.

    LLaVA-NeXT drops tokens of padding and adds one to the end of each row; this counts neither.
    """
    columns, rows = choose_grid(size, tile)
    return (columns * rows + 1) * patches
