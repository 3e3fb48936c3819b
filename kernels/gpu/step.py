"""A whole routed MLP for a few tokens in four kernels: router, choice, rows and output bias.

As operations of PyTorch, the router and the choice are some twenty kernels, which take longer than the rows of a large
MLP. Grids depend only on sizes and nothing waits for the host, so that CUDA graphs can hold a step.

Shapes: n tokens, d model, h router's hidden units, p pathways (PP, padded to a power of two).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from slms.kernels.call import Call, Layer
from slms.kernels.gpu.decode import product
from slms.kernels.gpu.launch import decode_forward
from slms.kernels.gpu.problem import problem
from slms.kernels.gpu.tiles import FEATURES, pick_sizes
from slms.kernels.router import GATES, SIGMOID, SOFTMAX, Router

SIGMOIDS, SOFTMAXES = tl.constexpr(SIGMOID), tl.constexpr(SOFTMAX)


@triton.jit
def features(x, W, b, out, d, H, ROWS: tl.constexpr, INNER: tl.constexpr):
    """out[t] = relu(W x[t] + b), in float32."""
    t = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s = product(x + t * d, W, row, row.to(tl.int64), row < H, row < H, 1, d, True, "ieee", False, 1, ROWS, INNER)
    s = tl.sum(s, 0) + tl.load(b + row, mask=row < H, other=0.0).to(tl.float32)
    tl.store(out + t * H + row, tl.where(s < 0, 0.0, s), mask=row < H)


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
    if KIND == SOFTMAXES:
        value = tl.exp(s - tl.max(tl.where(taken, s, float("-inf")), 0))
        value = K * value / tl.sum(tl.where(taken, value, 0.0), 0)
    elif KIND == SIGMOIDS:
        value = tl.sigmoid(s)
    else:
        value = tl.full((PP,), 1.0, tl.float32)
    if RAMPED:
        value = 1 + tl.load(ramp).to(tl.float32) * (value - 1)
    tl.store(gates + t * P + p, tl.where(taken, value, 0.0), mask=real)
    tl.store(chosen + t * P + p, taken.to(tl.uint8), mask=real)


class Step:
    """See `kernels.prepare_fused`; on CUDA, for up to GPU_TOKENS tokens and GPU_PATHWAYS pathways.

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


def choose(x: Tensor, router: Router) -> tuple[Tensor, Tensor]:
    """`kernels.choose` of x [n, d]: gates [n, p], float32 and 0 where not chosen, and what is chosen [n, p]."""
    x, p = x.contiguous(), len(router.W_out)
    n, d = x.shape
    gates, chosen = x.new_empty(n, p, dtype=torch.float32), x.new_empty(n, p, dtype=torch.bool)
    inputs = x
    if router.W_in is not None and router.b_in is not None:
        h = len(router.W_in)
        inputs = x.new_empty(n, h, dtype=torch.float32)
        rows = FEATURES["ROWS"]
        features[(triton.cdiv(h, rows), n)](x, router.W_in, router.b_in, inputs, d, h, **FEATURES)
    ramped = router.ramp is not None and router.gate in ("ramp", "blend")
    ramp = router.ramp if ramped else router.bias
    tensors = (inputs, router.W_out, router.b_out, router.bias, ramp, gates, chosen.view(torch.uint8))
    constants = {"KIND": GATES[router.gate], "RAMPED": ramped, **pick_sizes(p)}
    pick[(n,)](*tensors, inputs.shape[1], p, router.k, **constants)
    return gates, chosen
