"""Training of MLPs whose gates choose by thresholds: between the products, one pass over blocks that stay in the cache.

It computes what `kernels.gate_reference` does, number by number, and counts what was chosen. Masks are numbers, since
PyTorch multiplies by these twenty times as fast as it fills where a random mask says so. On CPUs with AVX-512 but no
AMX, `kernels.cpu.gate_skipping` multiplies by the chosen rows alone instead.

Shapes: n tokens, f neurons, p units; inside a block r tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.gate_reference import GateCall, choose_reference, per_neuron, unit_scores

BLOCK = 96 << 10  # numbers


class _ChosenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, call: GateCall, single: bool) -> tuple[Tensor, Tensor]:
        act, (n, f) = ACTIVATIONS[call.activation].value, gate.shape
        h, dropped, wide = (
            torch.empty_like(gate),
            torch.empty_like(gate),
            torch.promote_types(gate.dtype, torch.float32),
        )
        rows = max(1, BLOCK // f)
        room = torch.empty(2, min(rows, n), f, dtype=wide)
        ran = kept = 0
        for gate_r, up_r, h_r, dropped_r in zip(*(t.split(rows) for t in (gate, up, h, dropped)), strict=True):
            a = act(gate_r)
            torch.mul(a, up_r, out=h_r)
            if single:
                missed = _missed(a, call, room[0, : len(a)])
                skipped = missed.sum(1)
                ran += a.numel() - int(skipped.sum())
                if call.k_out is not None:
                    missed = _missed_again(h_r, missed, skipped, call, room[1, : len(a)])
            else:
                chosen = choose_reference(unit_scores(a, call.scale, call.offsets), call)
                ran += int(chosen.sum())
                missed = (~per_neuron(chosen, call.offsets)).to(wide)
            kept += a.numel() - int(missed.sum())
            h_r.addcmul_(h_r, dropped_r.copy_(missed), value=-1)
        ctx.save_for_backward(gate, up, dropped)
        ctx.activation, ctx.rows = call.activation, rows
        counts = torch.tensor([ran, kept, n * (len(call.offsets) - 1)])
        ctx.mark_non_differentiable(counts)
        return h, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        act, act_backward = ACTIVATIONS[ctx.activation]
        d_gate, d_up = (torch.empty_like(tensor) for tensor in ctx.saved_tensors[:2])
        split = (tensor.split(ctx.rows) for tensor in (*ctx.saved_tensors, grad, d_gate, d_up))
        for gate_r, up_r, dropped_r, grad_r, d_gate_r, d_up_r in zip(*split, strict=True):
            through = torch.addcmul(grad_r, grad_r, dropped_r, value=-1)
            torch.mul(through, act(gate_r), out=d_up_r)
            d_gate_r.copy_(act_backward(through.mul_(up_r), gate_r))
        return d_gate, d_up, None, None


def _missed(a: Tensor, call: GateCall, out: Tensor) -> Tensor:
    """1 where single neurons with activated gates a [r, f] are not chosen, else 0."""
    assert call.least is not None
    scores = torch.mul(a, call.scale, out=out).abs_()
    above = None if call.whole_above is None or call.whole_above.isinf() else scores.norm(dim=1) > call.whole_above
    missed = scores.lt_(call.least)
    missed[:, : call.n_shared] = 0
    if above is not None and above.any():
        missed[above] = 0
    return missed


def _missed_again(h: Tensor, missed: Tensor, skipped: Tensor, call: GateCall, out: Tensor) -> Tensor:
    """1 where neurons h [r, f] do not go through W_out, else 0; skipped [r]: how many of a token are missed."""
    assert call.out_scale is not None and call.least_out is not None
    small = torch.mul(h, call.out_scale, out=out).abs_().lt_(call.least_out)
    if (whole := skipped == 0).any():
        small[whole] = 0
    return torch.maximum(missed, small, out=small)


def chosen_product(gate: Tensor, up: Tensor, call: GateCall, units: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What goes through W_out, [n, f], of gates before their activation and ups [n, f], on the CPU.

    Also int64 [3]: the units that run, the neurons that go on, and how many units could run. `units` stand for the
    offsets, and are empty for single neurons. A second derivative does not exist.
    """
    return _ChosenProduct.apply(gate, up, call, not units)


def chosen_rows(call: GateCall) -> tuple[Tensor, Tensor]:
    """y [n, d] of a call with single neurons, which autocast has not cast yet, and the same counts, by chosen rows."""
    from slms.kernels.cpu.gate_skipping import ChosenRows  # numba takes half a second to import and is optional

    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else call.x.dtype
    return ChosenRows.apply(call, dtype, call.x, call.W_in, call.W_gate, call.W_out)
