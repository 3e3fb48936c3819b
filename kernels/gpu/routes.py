"""Route metadata on the device, for any number of chosen pathways per token, without waiting for the host.

Pairs (token, pathway) are numbered by pathway, then by token. Three small kernels: count per block of tokens, scan,
place.

Shapes: n tokens, p pathways, r pairs (at most `capacity`), tiles of `rows_per_tile` consecutive pairs of one pathway.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.gpu.tiles import routes_sizes


class RouteTable(NamedTuple):
    """All that the grouped kernels need to know about a choice; every tensor is int32 and on the device."""

    token: Tensor
    """[capacity] token of each pair; undefined from the last pair on"""
    pair: Tensor
    """[n, p] number of each chosen pair, −1 for pairs that are not chosen"""
    starts: Tensor
    """[p + 1] first pair of each pathway, then the number of pairs"""
    tile_pathway: Tensor
    """[most tiles there can be] pathway on which a tile works; undefined from the last tile on"""
    tile_row: Tensor
    """[most tiles there can be] first pair of a tile"""
    n_tiles: Tensor
    """[1] number of tiles"""

    @property
    def work(self) -> tuple[Tensor, ...]:
        """The tensors that a persistent kernel needs."""
        return self.token, self.starts, self.tile_pathway, self.tile_row, self.n_tiles


@triton.jit(do_not_specialize=["n"])
def _count(chosen, counts, n, P: tl.constexpr, PP: tl.constexpr, STEP: tl.constexpr):
    block = tl.program_id(0)
    t = block * STEP + tl.arange(0, STEP)
    p = tl.arange(0, PP)
    mask = (t < n)[:, None] & (p < P)[None, :]
    c = tl.load(chosen + t.to(tl.int64)[:, None] * P + p[None, :], mask=mask, other=0).to(tl.int32)
    tl.store(counts + block * P + p, tl.sum(c, 0), mask=p < P)


@triton.jit(do_not_specialize=["n_blocks", "capacity"])
def _scan(
    counts,
    starts,
    tile_pathway,
    tile_row,
    n_tiles,
    n_blocks,
    capacity,
    ROWS: tl.constexpr,
    P: tl.constexpr,
    PP: tl.constexpr,
    STEP: tl.constexpr,
):
    """Turn counts [blocks, p] into the pairs before each block, in place; then compute starts and the tiles' places."""
    p = tl.arange(0, PP)
    running = tl.zeros((PP,), tl.int32)
    for first in range(0, n_blocks, STEP):
        b = first + tl.arange(0, STEP)
        mask = (b < n_blocks)[:, None] & (p < P)[None, :]
        c = tl.load(counts + b[:, None] * P + p[None, :], mask=mask, other=0)
        before = running[None, :] + tl.cumsum(c, 0) - c
        tl.store(counts + b[:, None] * P + p[None, :], before, mask=mask)
        running += tl.sum(c, 0)
    end = tl.minimum(tl.cumsum(running, 0), capacity)
    start = tl.minimum(tl.cumsum(running, 0) - running, capacity)
    tl.store(starts + p, start, mask=p < P)
    tl.store(starts + P, tl.max(end, 0))
    tiles = (end - start + ROWS - 1) // ROWS
    tile_end = tl.cumsum(tiles, 0)
    count = tl.sum(tiles, 0)
    tl.store(n_tiles, count)
    for first in range(0, count, STEP):
        i = first + tl.arange(0, STEP)
        mine = (i[:, None] >= (tile_end - tiles)[None, :]) & (i[:, None] < tile_end[None, :])
        pathway = tl.sum(tl.where(mine, p[None, :], 0), 1)
        row = tl.sum(tl.where(mine, start[None, :] + (i[:, None] - (tile_end - tiles)[None, :]) * ROWS, 0), 1)
        tl.store(tile_pathway + i, pathway, mask=i < count)
        tl.store(tile_row + i, row, mask=i < count)


@triton.jit(do_not_specialize=["n", "capacity"])
def _place(chosen, before, starts, token, pair, n, capacity, P: tl.constexpr, PP: tl.constexpr, STEP: tl.constexpr):
    block = tl.program_id(0)
    t = block * STEP + tl.arange(0, STEP)
    p = tl.arange(0, PP)
    cell = t.to(tl.int64)[:, None] * P + p[None, :]
    mask = (t < n)[:, None] & (p < P)[None, :]
    c = tl.load(chosen + cell, mask=mask, other=0).to(tl.int32)
    first = tl.load(starts + p, mask=p < P, other=0) + tl.load(before + block * P + p, mask=p < P, other=0)
    number = first[None, :] + tl.cumsum(c, 0) - c
    tl.store(pair + cell, tl.where(c > 0, number, -1), mask=mask)
    tokens = tl.broadcast_to(t[:, None], (STEP, PP))
    tl.store(token + number, tokens, mask=mask & (c > 0) & (number < capacity))


def find_routes(chosen: Tensor, rows_per_tile: int, capacity: int) -> RouteTable:
    """Number the chosen entries of [n, p]; capacity: the most pairs that there can be.

    If there are more, they are numbered from `capacity` on and belong to no tile, so nothing is written out of bounds,
    and `kernels.gpu.grouped.combine` turns their tokens into NaN.
    """
    n, p = chosen.shape
    sizes = routes_sizes(p)
    blocks = triton.cdiv(n, sizes["STEP"])
    tiles = triton.cdiv(capacity, rows_per_tile) + p

    def ints(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, device=chosen.device)

    counts, starts, token, pair = ints(blocks, p), ints(p + 1), ints(capacity), ints(n, p)
    tile_pathway, tile_row, n_tiles = ints(tiles), ints(tiles), ints(1)
    cells = chosen.contiguous().view(torch.uint8)
    if blocks:
        _count[(blocks,)](cells, counts, n, **sizes)
    _scan[(1,)](counts, starts, tile_pathway, tile_row, n_tiles, blocks, capacity, ROWS=rows_per_tile, **sizes)
    if blocks:
        _place[(blocks,)](cells, counts, starts, token, pair, n, capacity, **sizes)
    return RouteTable(token, pair, starts, tile_pathway, tile_row, n_tiles)
