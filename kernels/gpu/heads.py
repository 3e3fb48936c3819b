"""Projections of chosen query heads on a GPU: x → their queries, and their outputs → the model's width.

A token's chosen heads lie in slots, from left to right. Few tokens read the rows and columns of the heads that any of
them chose, by one kernel each. Many tokens are grouped by head in the grouped products of pathways, whose transposes
these two projections are to each other; both have gradients. Nothing waits for the host.

Shapes: n tokens (N, padded to what a tensor core takes), d model, h heads (HH, padded to a power of two), e head size
(EE), s slots of a token, r pairs of token and head (n·s).
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from slms.kernels.backends import GPU_TOKENS
from slms.kernels.call import Call
from slms.kernels.gpu.backward import weight_gradient
from slms.kernels.gpu.decode import product
from slms.kernels.gpu.launch import combine, down, up
from slms.kernels.gpu.pieces import multiply, narrow
from slms.kernels.gpu.problem import Problem, problem
from slms.kernels.gpu.routes import RouteTable, find_routes
from slms.kernels.gpu.tiles import DECODE_TILES, arithmetic, family, triton_size


@triton.jit
def slots_of(chosen, head, n, H, N: tl.constexpr, HH: tl.constexpr):
    """Which of few tokens chose a head, and in which slot it is: the number of chosen heads to its left."""
    t, other = tl.arange(0, N), tl.arange(0, HH)
    inside = (t < n)[:, None] & (other < H)[None, :]
    c = tl.load(chosen + t[:, None] * H + other[None, :], mask=inside, other=0).to(tl.int32)
    kept = tl.sum(tl.where((other == head)[None, :], c, 0), 1) != 0
    return kept, tl.sum(tl.where((other < head)[None, :], c, 0), 1)


@triton.jit(do_not_specialize=["n"])
def few_queries(
    x,
    W,
    b,
    chosen,
    q,
    n,
    d,
    H,
    S,
    E,
    BIASED: tl.constexpr,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    HH: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """q[t, slot] = x[t] W[head]ᵀ + b[head] for a program's rows of one head, if any token chose it."""
    head = tl.program_id(0)
    kept, slot = slots_of(chosen, head, n, H, N, HH)
    if tl.max(kept.to(tl.int32), 0) == 0:
        return
    t, row = tl.arange(0, N), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    i, present = (head * E + row).to(tl.int64), row < E
    u = product(x, W, t, i, kept, present, n, d, ONE, PRECISION, UPCAST, N, ROWS, INNER)
    if BIASED:
        u += tl.load(b + i, mask=present, other=0.0).to(tl.float32)[None, :]
    place = q + (t * S + slot)[:, None] * E + row[None, :]
    tl.store(place, narrow(u, q.dtype.element_ty, UPCAST), mask=kept[:, None] & present[None, :])


@triton.jit(do_not_specialize=["n"])
def few_outputs(
    o,
    W,
    chosen,
    y,
    n,
    d,
    H,
    S,
    E,
    ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    N: tl.constexpr,
    HH: tl.constexpr,
    EE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """y[t, i] = Σ over t's chosen heads of o[t, slot] · W[i, head], W [d, h·e], read where any token chose the head."""
    t, e = tl.arange(0, N), tl.arange(0, EE)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    left = row.to(tl.int64) * H * E
    sums, total = tl.zeros((ROWS, EE), tl.float32), tl.zeros((N, ROWS), tl.float32)
    for head in range(H):
        kept, slot = slots_of(chosen, head, n, H, N, HH)
        if tl.max(kept.to(tl.int32), 0) != 0:
            place = o + (t * S + slot)[:, None] * E + e[None, :]
            a = tl.load(place, mask=kept[:, None] & (e < E)[None, :], other=0.0)
            if ONE:
                inside = (row < d)[:, None] & (e < E)[None, :]
                w = tl.load(W + left[:, None] + (head * E + e)[None, :], mask=inside, other=0.0)
                sums += w.to(tl.float32) * tl.sum(a.to(tl.float32), 0)[None, :]
            else:
                inside = (row < d)[None, :] & (e < E)[:, None]
                w = tl.load(W + left[None, :] + (head * E + e)[:, None], mask=inside, other=0.0)
                total = multiply(a, w, total, PRECISION, UPCAST)
    if ONE:
        total += tl.sum(sums, 1)[None, :]
    inside = (t < n)[:, None] & (row < d)[None, :]
    tl.store(y + t[:, None] * d + row[None, :], narrow(total, y.dtype.element_ty, UPCAST), mask=inside)


class HeadSlots:
    """Which heads are in a token's slots, for choices [n, h] of s heads each; a promise that is not checked."""

    def __init__(self, chosen: Tensor, s: int) -> None:
        self.chosen, self.s = chosen.contiguous(), s
        self._tables: dict[int, tuple[RouteTable, Tensor]] = {}  # and the place of each slot's pair, by rows of a tile

    @cached_property
    def heads(self) -> Tensor:
        """The head of each slot, int64 [n, s]."""
        return self.chosen.to(torch.int8).argsort(stable=True, dim=1, descending=True)[:, : self.s]

    def gates(self, gates: Tensor) -> Tensor:
        """The gates of slots [n, s], of gates [n, h]."""
        return gates.gather(1, self.heads)

    def queries(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """The queries of slots [n, s·e] for x [n, d], W [h·e, d], b [h·e]; few tokens without gradients."""
        x, W, b = _cast(x, W, b)
        with torch.cuda.device_of(x):  # Triton launches on the current device
            if self._few(x, W, b):
                return self._few_queries(x.contiguous(), W.contiguous(), b)
            return _Queries.apply(x, W, b, self)

    def written(self, W: Tensor, o: Tensor) -> Tensor:
        """Σ over slots of o[t, slot] W[:, head]ᵀ [n, d], for W [d, h·e] and the outputs of slots o [n, s·e]."""
        o, W, _ = _cast(o, W, None)
        with torch.cuda.device_of(o):
            if self._few(o, W):
                return self._few_outputs(o.contiguous(), W.contiguous())
            return _Outputs.apply(o, W.T, self)

    def _few(self, *tensors: Tensor | None) -> bool:
        trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        return len(self.chosen) <= GPU_TOKENS and not trained

    def _few_queries(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        (n, d), h = x.shape, self.chosen.shape[1]
        e = len(W) // h
        q, tile = x.new_empty(n, self.s * e), DECODE_TILES[family(x.dtype), "one" if n == 1 else "few"]
        tensors = (x, W, x if b is None else b, self.chosen.view(torch.uint8), q)
        constants = {"BIASED": b is not None, "HH": triton_size(h), **arithmetic(x.dtype), **tile.launch(n)}
        few_queries[(h, triton.cdiv(e, tile.rows))](*tensors, n, d, h, self.s, e, **constants)
        return q

    def _few_outputs(self, o: Tensor, W: Tensor) -> Tensor:
        n, (d, width), h = len(o), W.shape, self.chosen.shape[1]
        e, y = width // h, o.new_empty(n, d)
        launch = DECODE_TILES[family(o.dtype), "one" if n == 1 else "few"].launch(n)
        constants = {name: launch[name] for name in ("ONE", "N", "ROWS", "num_warps")} | arithmetic(o.dtype)
        constants |= {"HH": triton_size(h), "EE": max(16, triton_size(e))}
        tensors = (o, W, self.chosen.view(torch.uint8), y)
        few_outputs[(triton.cdiv(d, launch["ROWS"]),)](*tensors, n, d, h, self.s, e, **constants)
        return y

    def problem(self, x: Tensor, W: Tensor, b: Tensor | None) -> "Grouped":
        """The grouped products of x [n, d] and W [h·e, d] as those of pathways whose activation is the identity."""
        h = self.chosen.shape[1]
        e = len(W) // h
        ones = self.chosen.to(torch.float32)
        call = Call(x, W, b, None, None, W, ones, self.chosen, range(0, len(W) + 1, e), "relu", self.s)
        ours = problem(call)
        ours = ours._replace(constants=ours.constants | {"ACT": "none"})
        rows = ours.tiles.up.rows
        if rows not in self._tables:
            table = find_routes(self.chosen, rows, ours.capacity)
            self._tables[rows] = table, table.pair.gather(1, self.heads).flatten().long()
        return Grouped(ours, *self._tables[rows])


class Grouped(NamedTuple):
    """Tokens grouped by head."""

    call: Problem
    routes: RouteTable
    place: Tensor
    """int64 [n·s], the number of the pair that is in a slot"""

    def gathered(self) -> Tensor:
        """x W[head]ᵀ + b[head] of every slot [n, s·e]."""
        pairs = up(self.call, self.routes, self.call.tiles.up)
        return pairs.index_select(0, self.place).view(len(self.call.x), -1)

    def pairs(self, slots: Tensor) -> Tensor:
        """Slots [n, s·e] in the order of pairs [r, e]."""
        rows = slots.reshape(len(self.place), self.call.m)
        return torch.empty_like(rows).index_copy_(0, self.place, rows)

    def scattered(self, pairs: Tensor) -> Tensor:
        """Σ over a token's pairs [r, e] times their rows of W [n, d]."""
        return combine(
            down(self.call, self.routes, self.call.tiles.down, pairs, self.call.W_in), self.routes, self.call
        )

    def gradient(self, pairs: Tensor, right: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """pairsᵀ times each pair's row of right [n, d]: [h·e, d]; and the sum of the pairs if there is a bias."""
        return weight_gradient(self.call, self.routes, self.call.tiles.weight, pairs, right, b)


class _Queries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, slots: HeadSlots) -> Tensor:
        ctx.save_for_backward(x, W, b)
        ctx.slots = slots
        return slots.problem(x, W, b).gathered()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W, b = ctx.saved_tensors
        with torch.cuda.device_of(grad):
            grouped = ctx.slots.problem(x, W, b)
            pairs = grouped.pairs(grad)
            dW, db = grouped.gradient(pairs, grouped.call.x, b)
            return grouped.scattered(pairs), dW, None if b is None else db, None


class _Outputs(torch.autograd.Function):
    """Of W [h·e, d]."""

    @staticmethod
    def forward(ctx: Any, o: Tensor, W: Tensor, slots: HeadSlots) -> Tensor:
        ctx.save_for_backward(o, W)
        ctx.slots = slots
        grouped = slots.problem(o.new_empty(len(o), W.shape[1]), W, None)
        return grouped.scattered(grouped.pairs(o))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        o, W = ctx.saved_tensors
        with torch.cuda.device_of(grad):
            grouped = ctx.slots.problem(grad, W, None)
            dW, _ = grouped.gradient(grouped.pairs(o), grouped.call.x, None)
            return grouped.gathered(), dW, None


def _cast(x: Tensor, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """In the autocast type under autocast, as `F.linear` would."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, W, b
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
