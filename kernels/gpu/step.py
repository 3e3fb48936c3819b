"""A whole routed MLP for a few tokens in four kernels: router, choice, rows and output bias; of many pathways in five.

As operations of PyTorch, the router and the choice are some twenty kernels, which take longer than the rows of a large
MLP. Grids depend only on sizes and nothing waits for the host, so that CUDA graphs can hold a step.

Shapes: n tokens, d model, h router's hidden units, p pathways (PP, padded to a power of two).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.backends import GPU_PATHWAYS
from slms.kernels.call import Call, Layer
from slms.kernels.gpu.choice import largest, ordered
from slms.kernels.gpu.decode import product
from slms.kernels.gpu.launch import decode_forward
from slms.kernels.gpu.problem import problem
from slms.kernels.gpu.tiles import FEATURES, block_sizes, pick_sizes, select_sizes
from slms.kernels.router import GATES, SIGMOID, SOFTMAX, Router

SIGMOIDS, SOFTMAXES = tl.constexpr(SIGMOID), tl.constexpr(SOFTMAX)


@triton.jit
def features(x, W, b, out, d, H, RELU: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr):
    """out[t] = relu(W x[t] + b), in float32; without RELU, W x[t] + b."""
    t = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s = product(x + t * d, W, row, row.to(tl.int64), row < H, row < H, 1, d, True, "ieee", False, 1, ROWS, INNER)
    s = tl.sum(s, 0) + tl.load(b + row, mask=row < H, other=0.0).to(tl.float32)
    if RELU:
        s = tl.where(s < 0, 0.0, s)
    tl.store(out + t * H + row, s, mask=row < H)


@triton.jit
def gate_of(s, top, total, ramp, K, KIND: tl.constexpr, RAMPED: tl.constexpr):
    """The gates of scores s of the K chosen, whose largest is `top`, and the sum of whose exponentials is `total`."""
    if KIND == SOFTMAXES:
        value = K * tl.exp(s - top) / total
    elif KIND == SIGMOIDS:
        value = tl.sigmoid(s)
    else:
        value = tl.where(s == s, 1.0, s)  # NaN shows
    if RAMPED:
        value = 1 + tl.load(ramp).to(tl.float32) * (value - 1)
    return value


@triton.jit
def pick(
    inputs,
    W,
    b,
    bias,
    ramp,
    gates,
    chosen,
    width,
    P,
    K,
    KIND: tl.constexpr,
    RAMPED: tl.constexpr,
    PP: tl.constexpr,
    INNER: tl.constexpr,
):
    """Compute `kernels.choose` from the features: scores s = W inputs[t] + b, the K largest of s + bias, their gates.

    Comparisons with NaN are false: a token of NaNs chooses all, and shows it.
    """
    t = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, PP)
    real = p < P
    s = product(inputs + t * width, W, p, p.to(tl.int64), real, real, 1, width, True, "ieee", False, 1, PP, INNER)
    s = tl.sum(s, 0) + tl.load(b + p, mask=real, other=0.0).to(tl.float32)
    ranked = s + tl.load(bias + p, mask=real, other=0.0).to(tl.float32)
    theirs, mine = ranked[:, None], ranked[None, :]
    ahead = (theirs > mine) | ((theirs == mine) & (p[:, None] < p[None, :]))
    taken = real & (tl.sum((ahead & real[:, None]).to(tl.int32), 0) < K)
    top, total = 0.0, 1.0
    if KIND == SOFTMAXES:
        top = tl.max(tl.where(taken, s, float("-inf")), 0)
        total = tl.sum(tl.where(taken, tl.exp(s - top), 0.0), 0)
    value = gate_of(s, top, total, ramp, K, KIND, RAMPED)
    tl.store(gates + t * P + p, tl.where(taken, value, 0.0), mask=real)
    tl.store(chosen + t * P + p, taken.to(tl.uint8), mask=real)


@triton.jit
def pick_many(
    scores,
    bias,
    ramp,
    gates,
    chosen,
    P,
    K,
    KIND: tl.constexpr,
    RAMPED: tl.constexpr,
    UU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same from scores s [n, p] of more pathways than can be compared with each other; NaN is the largest."""
    t = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, UU)
    ranked = tl.load(scores + t * P + p, mask=p < P, other=0.0) + tl.load(bias + p, mask=p < P, other=0.0).to(
        tl.float32
    )
    taken = largest(tl.where(p < P, ordered(ranked), -2147483648), K, True)
    tl.store(chosen + t * P + p, taken.to(tl.uint8), mask=p < P)
    tl.debug_barrier()
    top, total = 0.0, 1.0
    if KIND == SOFTMAXES:
        tops, sums = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for first in range(0, P, BLOCK):
            s, c = of_block(scores + t * P, chosen + t * P, first, P, BLOCK)
            tops = tl.maximum(tops, tl.where(c, s, float("-inf")))
        top = tl.max(tops, 0)
        for first in range(0, P, BLOCK):
            s, c = of_block(scores + t * P, chosen + t * P, first, P, BLOCK)
            sums += tl.where(c, tl.exp(s - top), 0.0)
        total = tl.sum(sums, 0)
    for first in range(0, P, BLOCK):
        s, c = of_block(scores + t * P, chosen + t * P, first, P, BLOCK)
        i = first + tl.arange(0, BLOCK)
        value = gate_of(s, top, total, ramp, K, KIND, RAMPED)
        tl.store(gates + t * P + i, tl.where(c, value, 0.0), mask=i < P)


@triton.jit
def of_block(scores, chosen, first, P, BLOCK: tl.constexpr):
    """Scores of a block of pathways, and which of them are chosen."""
    p = first + tl.arange(0, BLOCK)
    s = tl.load(scores + p, mask=p < P, other=0.0)
    return s, tl.load(chosen + p, mask=p < P, other=0) != 0


class Step:
    """See `kernels.prepare_fused`; on CUDA, for up to GPU_TOKENS tokens and GPU_UNITS pathways.

    It covers every `Router`: linear or with a hidden layer, all its gates, any k, with or without pathways' means.
    Others (rules other than top_k, shared pathways) run PyTorch's choice and then `kernels.routed_mlp`.
    """

    def __init__(self, layer: Layer) -> None:
        given = (*layer, *layer.router)
        self.copied = any(isinstance(value, Tensor) and not value.is_contiguous() for value in given)
        self.layer: Layer = _contiguous(layer._replace(router=_contiguous(layer.router)))

    def __call__(self, x: Tensor, backend: str = "triton") -> Tensor:
        """The output [n, d] for x [n, d]; there is only one backend, which `fuses` names."""
        assert backend == "triton", backend
        if len(x) == 0:
            return torch.empty_like(x)
        layer = self.layer
        with torch.cuda.device_of(x):  # Triton launches on the current device
            gates, chosen = choose(x, layer.router)
            call = Call(x, *layer.weights, gates, chosen, layer.offsets, layer.activation)
            return decode_forward(problem(call), layer.b_out, layer.mean_out)


def _contiguous(values: Any) -> Any:
    """A NamedTuple with contiguous tensors."""
    return values._make(value.contiguous() if isinstance(value, Tensor) else value for value in values)


def linear(x: Tensor, W: Tensor, b: Tensor, relu: bool) -> Tensor:
    """W x + b of x [n, d] for few tokens, in float32."""
    (n, d), h = x.shape, len(W)
    out = x.new_empty(n, h, dtype=torch.float32)
    features[(triton.cdiv(h, FEATURES["ROWS"]), n)](x, W, b, out, d, h, RELU=relu, **FEATURES)
    return out


def choose(x: Tensor, router: Router) -> tuple[Tensor, Tensor]:
    """`kernels.choose` of x [n, d]: gates [n, p], float32 and 0 where not chosen, and what is chosen [n, p]."""
    x, p = x.contiguous(), len(router.W_out)
    n = len(x)
    gates, chosen = x.new_empty(n, p, dtype=torch.float32), x.new_empty(n, p, dtype=torch.bool)
    inputs = x
    if router.W_in is not None and router.b_in is not None:
        inputs = linear(x, router.W_in, router.b_in, relu=True)
    ramped = router.ramp is not None and router.gate in ("ramp", "blend")
    tensors = (router.bias, router.ramp if ramped else router.bias, gates, chosen.view(torch.uint8))
    constants = {"KIND": GATES[router.gate], "RAMPED": ramped}
    if p > GPU_PATHWAYS:
        scores = linear(inputs, router.W_out, router.b_out, relu=False)
        pick_many[(n,)](scores, *tensors, p, router.k, **constants, **select_sizes(p), **block_sizes(p))
    else:
        pick[(n,)](
            inputs, router.W_out, router.b_out, *tensors, inputs.shape[1], p, router.k, **constants, **pick_sizes(p)
        )
    return gates, chosen
