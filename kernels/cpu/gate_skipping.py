"""A training step of gate-selected neurons by chosen rows: compiled loops, and the library for the rest.

Shapes: n tokens, d model, f neurons, m neurons that many tokens choose, q pairs of a token and another neuron.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from slms.kernels.cpu import gate_choice as slots
from slms.kernels.cpu import gate_gradients as gradients
from slms.kernels.cpu import gate_steps as steps
from slms.kernels.cpu import loops
from slms.kernels.cpu.gate_gradients import join_loop, tokens_loop, weights_loop
from slms.kernels.cpu.gate_steps import choose_loop, forward_loop
from slms.kernels.cpu.pointwise import CODES
from slms.kernels.cpu.rows import MEMBERS, address, packed, run, take_part
from slms.kernels.cpu.team import team_size
from slms.kernels.gate_reference import GateCall

MANY = 0.65  # the share of the tokens from which on a library is faster for a neuron (docs/log.md)


def choose_member(arguments):
    take_part(choose_loop, arguments)


def join_member(arguments):
    take_part(join_loop, arguments)


def forward_member(arguments):
    take_part(forward_loop, arguments)


def tokens_member(arguments):
    take_part(tokens_loop, arguments)


def weights_member(arguments):
    take_part(weights_loop, arguments)


MEMBERS[choose_loop] = choose_member
MEMBERS[join_loop] = join_member
MEMBERS[forward_loop] = forward_member
MEMBERS[tokens_loop] = tokens_member
MEMBERS[weights_loop] = weights_member


def _join(first: Tensor, second: Tensor, team: int) -> Tensor:
    """Interleave two matrices [f, d] of bfloat16: [f, d, 2]."""
    both = first.new_empty(*first.shape, 2)
    a = packed([*first.shape, 1], (0, len(first)))
    a[[steps.W_IN, gradients.W_GATE, gradients.W_BOTH]] = address(first), address(second), address(both)
    run(join_loop, team, a)
    return both


class ChosenRows(torch.autograd.Function):
    """y [n, d] of a call and its counts, computed in a type; `given` are x, W_in, W_gate and W_out, of any type."""

    @staticmethod
    def forward(ctx: Any, call: GateCall, dtype: torch.dtype, *given: Tensor) -> tuple[Tensor, Tensor]:
        ctx.types = [tensor.dtype for tensor in given]
        x, W_in, W_gate, W_out = (tensor.to(dtype).contiguous() for tensor in given)
        (n, d), f = x.shape, len(W_in)
        team = team_size(W_in.nbytes * max(n, 1))
        gates = F.linear(x, W_gate)
        a = packed([n, d, 1, CODES[call.activation], dtype.itemsize], (0, f))
        chosen, counts = torch.empty(n, f, dtype=torch.uint8), torch.zeros(team, f, dtype=torch.int64)
        # Held, because the loops know only addresses.
        scales = [t if t is None else t.contiguous() for t in (call.scale, call.out_scale)]
        a[loops.K], a[slots.SHARED], a[slots.SINGLE] = call.k, call.n_shared, 1
        a[slots.K_OUT] = -1 if call.k_out is None else call.k_out
        a[[slots.SCALE, slots.OUT_SCALE]] = [address(t) for t in scales]
        a[[slots.WHOLE, slots.LEAST, slots.LEAST_OUT]] = [
            address(t) for t in (call.whole_above, call.least, call.least_out)
        ]
        a[[steps.GATES, steps.CHOSEN, steps.COUNTS]] = [address(t) for t in (gates, chosen, counts)]
        run(choose_loop, team, a)
        ran = counts.sum(0)
        many = (ran > MANY * n).nonzero().flatten()
        column = torch.full((f,), -1, dtype=torch.int64)
        column[many] = torch.arange(len(many))
        h_many = F.linear(x, W_in[many])
        sizes_many, slopes_many = torch.empty_like(h_many), torch.empty_like(h_many)
        q = int(ran.sum() - ran[many].sum()) + team
        span, names = torch.empty(n, 3, dtype=torch.int64), torch.empty(q, dtype=torch.int32)
        sizes, slopes, h = torch.empty(3, q, dtype=torch.float32)
        y = torch.empty(n, d, dtype=torch.float32)
        columns = h_many, sizes_many, slopes_many
        pairs = span, names, sizes, slopes, h
        a[[steps.H_MANY, steps.SIZES_MANY, steps.SLOPES_MANY]] = [address(t) for t in columns]
        a[[steps.SPAN, steps.NAMES, steps.SIZES, steps.SLOPES, steps.H]] = [address(t) for t in pairs]
        held = x, W_in, W_out, column, y
        a[[steps.X, steps.W_IN, steps.W_OUT, steps.COLUMN, steps.Y]] = [address(t) for t in held]
        a[steps.Q] = q
        run(forward_loop, team, a)
        y = y.add_(h_many @ W_out[many]).to(dtype)
        ctx.save_for_backward(x, W_in, W_gate, W_out, many, *columns, *pairs)
        ctx.team = team
        found = torch.stack([ran.sum(), span[:, 2].sum(), ran.new_tensor(n * f)])
        ctx.mark_non_differentiable(found)
        return y, found

    @staticmethod
    @once_differentiable  # else a second derivative would silently lack what the loops computed
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, W_in, W_gate, W_out, many, h_many, sizes_many, slopes_many, *pairs = ctx.saved_tensors
        (n, d), f, q, team = x.shape, len(W_in), len(pairs[1]), ctx.team
        of_x, *of_weights = ctx.needs_input_grad[2:]
        grad = grad.to(x.dtype).contiguous()
        e = grad @ W_out[many].T
        du, dg = e * sizes_many, e * slopes_many
        both = x.new_empty(q, 2)
        d_x = torch.empty(n, d, dtype=torch.float32) if of_x else None
        joined = _join(W_in, W_gate, team) if of_x and x.dtype == torch.bfloat16 else None
        a = packed([n, d, 1, 0, x.element_size()], (0, f))
        a[[steps.SPAN, steps.NAMES, steps.SIZES, steps.SLOPES, steps.H]] = [address(t) for t in pairs]
        held = x, W_in, W_out, W_gate, joined, grad, both, d_x
        places = [steps.X, steps.W_IN, steps.W_OUT, gradients.W_GATE, gradients.W_BOTH]
        a[[*places, gradients.GRAD, gradients.DU_DG, gradients.D_X]] = [address(t) for t in held]
        a[steps.Q] = q
        run(tokens_loop, team, a)
        if d_x is not None:
            d_x = d_x.add_(du @ W_in[many]).add_(dg @ W_gate[many]).to(ctx.types[0])
        if not any(of_weights):
            return None, None, d_x, None, None, None
        d_both, d_out = torch.empty(2, f, d, dtype=torch.float32), torch.empty(f, d, dtype=torch.float32)
        a[[gradients.D_W_BOTH, gradients.D_W_OUT]] = address(d_both), address(d_out)
        run(weights_loop, team, a)
        for part, left, right in ((d_both[0], du, x), (d_both[1], dg, x), (d_out, h_many, grad)):
            part[many] = (left.T @ right).float()
        weights = (
            part.to(dtype) if wanted else None
            for part, dtype, wanted in zip((*d_both, d_out), ctx.types[1:], of_weights, strict=True)
        )
        return None, None, d_x, *weights
