"""Runs every Triton kernel of the package on one device beside its reference, for `benchmarks.gpu`.

Shapes: n tokens, d model, f neurons, p units or pathways.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_setting import Row, Setting
from benchmarks.kernel_parity import TOLERANCE, parity
from slms.kernels.backends import GPU_TOKENS
from slms.kernels.call import Call
from slms.kernels.costs import Shape
from slms.kernels.dispatch import routed_mlp
from slms.kernels.gate import units_of
from slms.kernels.gate_reference import GateCall, gate_mlp_reference
from slms.kernels.gpu import choice, sparse
from slms.kernels.gpu.gate import gate_choice, gate_rows
from slms.kernels.gpu.gate_many import gate_many, up_where_chosen
from slms.kernels.gpu.heads import HeadSlots
from slms.kernels.gpu.step import choose as step_choose
from slms.kernels.neurons import dots_reference, sums_reference
from slms.kernels.reference import routed_mlp_reference
from slms.kernels.router import Router, choose, top_k
from slms.kernels.timing import random_call

Forward = Callable[[], Tensor]


def random_gate_call(
    shape: Shape, n_tokens: int, density: float, seed: int = 0, apart: bool = False, density_out: float | None = None
) -> GateCall:
    """A SwiGLU of gate-selected units; apart: scales from 1e-15 to 1e15, so that no rounding changes a choice.

    density_out: of a second choice, among single neurons.
    """
    call = random_call(shape._replace(n_pathways=1, gated=True), n_tokens, 1.0, "silu", seed)
    d_ff, p = shape.d_ff, shape.n_pathways
    scale = torch.rand(d_ff, device=call.x.device) + 0.5
    if apart:
        scale = torch.logspace(-15, 15, d_ff, device=call.x.device)[torch.randperm(d_ff, device=call.x.device)]
    offsets = tuple(d_ff * i // p for i in range(p + 1))
    inputs = (call.x, call.W_in, None, call.W_gate, None, call.W_out)
    assert call.W_gate is not None
    made = GateCall(*inputs, scale.float(), offsets, max(1, round(density * p)), 0, "silu")  # type: ignore[arg-type]
    return made if density_out is None else made._replace(k_out=round(density_out * p), out_scale=scale.float().flip(0))


def _row(kernel: str, shape: Shape, n_tokens: int, actual: Forward, reference: Forward, leaves: list[Tensor]) -> Row:
    said: Row = {"kernel": kernel, "d": shape.d_model, "f": shape.d_ff, "units": shape.n_pathways}
    said |= {"dtype": shape.dtype, "pass": "train" if shape.training else "forward", "tokens": n_tokens}
    try:
        return said | {"ok": True, "error": f"{parity(actual, reference, leaves, shape):.1e}"}
    except SystemExit as failure:
        return said | {"ok": False, "error": str(failure)}


def _pathways(shape: Shape, n_tokens: int) -> Iterator[Row]:
    call = random_call(shape, n_tokens, 0.25, "silu" if shape.gated else "gelu_new")
    runs = functools.partial(routed_mlp, call, "triton"), functools.partial(routed_mlp_reference, call)
    yield _row("pathways", shape, n_tokens, *runs, call.leaves)


def _gates(shape: Shape, n_tokens: int) -> Iterator[Row]:
    call = random_gate_call(shape, n_tokens, 0.4, apart=True)
    units = units_of(call.offsets)
    if not units:
        twice = random_gate_call(shape, n_tokens, 0.4, apart=True, density_out=0.2)
        yield from _of_gates("twice, ", twice, shape, n_tokens)
    yield from _of_gates("", call, shape, n_tokens)
    if shape.training:
        return

    def epilogue() -> Tensor:
        gate = call.x @ call.W_gate.t()
        return up_where_chosen(call, gate, gate_choice(gate, call, units), units) @ call.W_out

    yield _row("gate epilogue", shape, n_tokens, epilogue, functools.partial(gate_mlp_reference, call), [])


def _of_gates(kind: str, call: GateCall, shape: Shape, n_tokens: int) -> Iterator[Row]:
    units = units_of(call.offsets)
    reference = functools.partial(gate_mlp_reference, call)
    if not shape.training and n_tokens <= GPU_TOKENS:
        yield _row(f"{kind}gate rows", shape, n_tokens, functools.partial(gate_rows, call, units), reference, [])
    leaves = [t for t in call[:6] if isinstance(t, Tensor)] if shape.training else []
    many = functools.partial(gate_many, call, units, True)
    yield _row(f"{kind}gate product", shape, n_tokens, many, reference, leaves)


def _rules(shape: Shape, n_tokens: int) -> Iterator[Row]:
    """Single rows, and the choice of a decoding step's router."""
    call = random_call(shape._replace(gated=False), n_tokens, 0.5, "relu")
    keep = torch.rand(n_tokens, shape.d_ff, device=call.x.device) < 0.5
    v = torch.randn(n_tokens, shape.d_ff, device=call.x.device).to(call.x.dtype)
    runs = [lambda: sparse.dots(call.x, call.W_in, keep), lambda: dots_reference(call.x, call.W_in, keep)]
    yield _row("rows' products", shape, n_tokens, runs[0], runs[1], [])
    runs = [lambda: sparse.sums(v, call.W_out, keep), lambda: sums_reference(v, call.W_out, keep)]
    yield _row("rows' sums", shape, n_tokens, runs[0], runs[1], [])
    scores = torch.randn(n_tokens, shape.d_ff, device=call.x.device)
    k = shape.d_ff // 3
    runs = [lambda: choice.top_k(scores, k).float(), lambda: top_k(scores.cpu(), k).to(scores.device).float()]
    yield _row("largest scores", shape, n_tokens, runs[0], runs[1], [])
    for p in (shape.n_pathways, shape.d_ff):
        yield _router(shape, n_tokens, p, call)


def _router(shape: Shape, n_tokens: int, p: int, call: Call) -> Row:
    W = torch.linspace(-1, 1, p, device=call.x.device).unsqueeze(1).repeat(1, shape.d_model).to(call.x.dtype)
    zeros = torch.zeros(p, device=call.x.device, dtype=call.x.dtype)
    router = Router(None, None, W, zeros, zeros, max(1, p // 4), "sigmoid", None)
    ones = torch.ones_like(call.x)
    gates = [lambda: step_choose(ones, router)[0].float(), lambda: choose(ones, router)[0].float()]
    return _row("router's choice", shape._replace(n_pathways=p), n_tokens, gates[0], gates[1], [])


def _heads(shape: Shape, n_tokens: int) -> Iterator[Row]:
    """Projections of a third of the heads of 64 dimensions, beside those of all."""
    e, h, s = 64, 9, 3
    like = random_call(shape._replace(d_ff=h * e, n_pathways=h, gated=False), n_tokens, s / h, "relu")
    x, W, b, W_O, chosen = like.x, like.W_in, like.b_in, like.W_out, like.chosen
    o = random_call(shape._replace(d_model=s * e), n_tokens, 1.0, "relu").x
    slots = HeadSlots(chosen, s)

    def queries() -> Tensor:
        return F.linear(x, W, b).view(n_tokens, h, e)[chosen].view(n_tokens, s * e)

    def outputs() -> Tensor:
        placed = o.new_zeros(n_tokens, h, e)
        return placed.masked_scatter(chosen[:, :, None], o.view(n_tokens, s, e)).flatten(1) @ W_O

    leaves = [t for t in (x, W, b) if t is not None] if shape.training else []
    yield _row("queries of heads", shape, n_tokens, lambda: slots.queries(x, W, b), queries, leaves)
    leaves = [o, W_O] if shape.training else []
    yield _row("outputs of heads", shape, n_tokens, lambda: slots.written(W_O.T, o), outputs, leaves)


def parity_rows(setting: Setting) -> Iterator[Row]:
    """Compare all kernels, for few tokens and for many, in every type."""
    d, f, few, many = (16, 64, (1,), 20) if setting.dry else (576, 1536, (1, 4, GPU_TOKENS), 600)
    units = (4, f) if setting.dry else (16, 96, f)
    small = 300 if setting.dry else f  # pathways, too many to be grouped by
    dtypes = ("float32",) if setting.dry else tuple(TOLERANCE)
    for dtype, training in itertools.product(dtypes, (False, True)):
        shape = Shape(d, f, units[0], True, dtype, setting.device, training)
        for n in (many,) if training else few if setting.dry else (*few, many):
            for gated in (True,) if setting.dry else (True, False):
                made = shape._replace(gated=gated)
                for one in (made, made._replace(d_ff=max(f, small), n_pathways=small)):
                    yield from setting.rows(f"parity of pathways, {n}", functools.partial(_pathways, one, n))
            for p in units:
                made = shape._replace(n_pathways=p)
                yield from setting.rows(f"parity of gates, {n}", functools.partial(_gates, made, n))
            yield from setting.rows(f"parity of heads, {n}", functools.partial(_heads, shape, n))
            if not training and n <= GPU_TOKENS:
                yield from setting.rows(f"parity of rows, {n}", functools.partial(_rules, shape, n))
