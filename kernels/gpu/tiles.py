"""The shipped tile sizes, and the constants for which each call compiles: type, activation, arithmetic."""

import os
from typing import NamedTuple

import torch

from slms.kernels.backends import GPU_TOKENS

ACTS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}
COMBINE_COLS = 512
# Few columns, so that those of one token occupy every multiprocessor; many slices at once, so that none waits.
ADD = {"SLICES": 64, "COLS": 32}
# The router of a decoding step: rows of its first layer for a program, numbers of a row at a time.
FEATURES = {"ROWS": 4, "INNER": 512}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def routes_sizes(p: int) -> dict[str, int]:
    """Sizes for `kernels.gpu.routes`: registers hold STEP rows, of tokens or blocks, with p numbers each at once."""
    padded = 1 << (p - 1).bit_length()
    return {"P": p, "PP": padded, "STEP": min(64, 4096 // padded)}


def pick_sizes(p: int) -> dict[str, int]:
    """Sizes for the last layer of a decoding step's router: one program compares each of p pathways with each."""
    padded = 1 << (p - 1).bit_length()
    return {"PP": padded, "INNER": min(128, 8192 // padded), "num_warps": 4 if padded <= 64 else 8}


class Tile(NamedTuple):
    """The sizes of one program's work, and its resources; powers of two, at least 16 for the tensor cores."""

    rows: int
    cols: int
    inner: int
    warps: int
    stages: int
    resident: tuple[int, int] = (1, 1)
    """programs that one multiprocessor of sm_80, of sm_90 takes at once: the grid of a persistent kernel"""

    def launch(self) -> dict[str, int]:
        sizes = {"ROWS": self.rows, "COLS": self.cols, "INNER": self.inner}
        return {**sizes, "num_warps": self.warps, "num_stages": self.stages}


class Tiles(NamedTuple):
    """The tiles of each grouped kernel. All but weight have the same rows, because they share the routes."""

    up: Tile
    gated_up: Tile
    down: Tile
    gated_down: Tile
    """for dx of a gated MLP"""
    hidden: Tile
    gated_hidden: Tile
    weight: Tile


# Chosen by what fits without spilling (`python -m benchmarks.gpu_resources`), not yet by timing: no GPU has run them.
TILES = {
    ("half", "large"): Tiles(
        up=Tile(128, 128, 64, 8, 3),
        gated_up=Tile(128, 64, 64, 8, 3),
        down=Tile(128, 128, 64, 8, 3, (1, 2)),
        gated_down=Tile(128, 128, 32, 8, 3, (1, 2)),
        hidden=Tile(128, 64, 64, 8, 3),
        gated_hidden=Tile(128, 32, 64, 8, 3),
        weight=Tile(128, 128, 64, 8, 6),
    ),
    ("half", "small"): Tiles(
        up=Tile(16, 64, 128, 4, 3, (3, 5)),
        gated_up=Tile(16, 64, 64, 4, 3, (4, 5)),
        down=Tile(16, 64, 64, 4, 3, (4, 5)),
        gated_down=Tile(16, 64, 64, 4, 3, (4, 5)),
        hidden=Tile(16, 64, 64, 4, 3, (3, 5)),
        gated_hidden=Tile(16, 64, 64, 4, 3, (2, 3)),
        weight=Tile(64, 64, 32, 4, 6),
    ),
    ("float", "large"): Tiles(
        up=Tile(64, 64, 16, 8, 2),
        gated_up=Tile(64, 32, 32, 8, 3),
        down=Tile(64, 64, 16, 8, 2, (2, 3)),
        gated_down=Tile(64, 64, 16, 8, 2, (2, 2)),
        hidden=Tile(64, 32, 32, 8, 2),
        gated_hidden=Tile(64, 32, 32, 8, 2),
        weight=Tile(64, 64, 16, 8, 3),
    ),
    ("float", "small"): Tiles(
        up=Tile(16, 64, 32, 4, 2, (2, 5)),
        gated_up=Tile(16, 64, 32, 4, 3, (4, 2)),
        down=Tile(16, 64, 32, 4, 2, (6, 6)),
        gated_down=Tile(16, 64, 32, 4, 2, (6, 6)),
        hidden=Tile(16, 32, 32, 4, 3, (4, 5)),
        gated_hidden=Tile(16, 32, 32, 4, 3, (4, 4)),
        weight=Tile(32, 64, 16, 4, 2),
    ),
}
# Sizes that do not divide by 16, as in small models, are loaded number by number, which takes registers.
TILES |= {
    (kind, "odd"): Tiles(
        up=Tile(32, 32, 16, 4, 2, (2, 3)),
        gated_up=Tile(32, 32, 16, 4, 2, (2, 3)),
        down=Tile(32, 64, 16, 4, 2, (3, 3)),
        gated_down=Tile(32, 64, 16, 4, 2, (3, 3)),
        hidden=Tile(32, 32, 16, 4, 2, (2, 2)),
        gated_hidden=Tile(32, 32, 16, 4, 2, (2, 2)),
        weight=Tile(32, 64, 16, 4, 2),
    )
    for kind in ("half", "float")
}


class DecodeTile(NamedTuple):
    rows: int
    inner: int
    warps: int

    def launch(self, n_tokens: int, inner: str = "INNER") -> dict[str, int]:
        """The launch options of a kernel for this few tokens; one token is a special case."""
        one = n_tokens == 1
        count = {"ONE": one, "N": 1 if one else GPU_TOKENS}
        return {**count, "ROWS": self.rows, inner: self.inner, "num_warps": self.warps}


DECODE_TILES = {
    ("half", "one"): DecodeTile(16, 512, 4),
    ("half", "few"): DecodeTile(32, 128, 4),
    ("float", "one"): DecodeTile(16, 256, 8),
    ("float", "few"): DecodeTile(16, 64, 4),
}


# The same for sums over rows, where inner counts columns.
SUMS_TILES = {
    ("half", "one"): DecodeTile(32, 256, 4),
    ("half", "few"): DecodeTile(32, 128, 4),
    ("float", "one"): DecodeTile(32, 128, 4),
    ("float", "few"): DecodeTile(32, 64, 4),
}


# Elementwise passes over [n, f]: cells of a program.
CELLS = {"BLOCK": 1024}


def score_sizes(longest: int) -> dict[str, int]:
    """Sizes for scores of units: about 2,048 neurons for a program, each unit's side by side."""
    members = min(256, triton_size(longest))
    return {"UNITS": 2048 // members, "MEMBERS": members}


def weigh_sizes(longest: int) -> dict[str, int]:
    """The same for a pass over all neurons, which holds more of each in registers."""
    return score_sizes(longest) | {"num_warps": 8}


def select_sizes(p: int) -> dict[str, int]:
    """Sizes for a choice among p units, which one program holds in registers, 16 in a thread."""
    padded = triton_size(p)
    return {"UU": padded, "num_warps": max(1, min(32, padded // 512))}


def block_sizes(p: int) -> dict[str, int]:
    """How many of p units the program handles at a time when it has chosen, so that little is in registers at once."""
    return {"BLOCK": min(triton_size(p), 4096)}


def triton_size(count: int) -> int:
    """The next power of two, as Triton's blocks are."""
    return 1 << max(count - 1, 0).bit_length()


def gate_tile(dtype: torch.dtype, n_tokens: int, chosen: int) -> DecodeTile:
    """The tile for rows chosen by gates; `chosen`: neurons of a token.

    One token takes few rows for a program while there are few, or most multiprocessors would have nothing to do, and
    more later, because a program writes a whole partial sum. Estimates: no GPU has run them.
    """
    shipped = DECODE_TILES[family(dtype), "one" if n_tokens == 1 else "few"]
    if n_tokens > 1:
        return shipped._replace(rows=16)
    return shipped._replace(rows=4) if chosen <= 1024 else shipped._replace(rows=8 if chosen <= 4096 else 16, inner=256)


def combine_warps(dtype: torch.dtype) -> int:
    """The number of warps at which each thread loads 16 bytes."""
    return COMBINE_COLS * dtype.itemsize // (16 * 32)


def family(dtype: torch.dtype) -> str:
    return "float" if dtype == torch.float32 else "half"


def upcast(dtype: torch.dtype) -> bool:
    """Whether to upcast, which the interpreter needs for bfloat16; see `kernels.gpu.pieces`."""
    return INTERPRETED and dtype == torch.bfloat16


def arithmetic(dtype: torch.dtype) -> dict:
    """The constants of a product; as in PyTorch, float32 is exact unless `torch.backends.cuda.matmul.allow_tf32`."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return {"PRECISION": "tf32" if tf32 else "ieee", "UPCAST": upcast(dtype)}


def tiles_for(dtype: torch.dtype, n_tokens: int, odd: bool) -> Tiles:
    """The tiles for a call; odd: whether a size does not divide by 16."""
    return TILES[family(dtype), "odd" if odd else "large" if n_tokens >= 512 else "small"]


def masked_tile(dtype: torch.dtype, n_tokens: int, odd: bool) -> Tile:
    """The tile for an up-projection whose epilogue reads gates and choices, for which fp32 needs spare registers."""
    shipped = tiles_for(dtype, n_tokens, odd)
    return shipped.gated_up if dtype == torch.float32 else shipped.up
