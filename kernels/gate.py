"""Runs a gated MLP whose neurons are chosen by their own gates: checks, choice, and the implementations by name.

Shapes: n tokens, d model, f neurons, p units.
"""

from itertools import pairwise

import torch
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.gate_reference import (
    GateCall,
    gate_activations,
    gate_mlp_reference,
    select_reference,
    unit_scores,
)

GATE_BACKENDS = ("auto", "reference")


def check_gate_call(call: GateCall) -> None:
    """Raise ValueError if shapes, types or names do not fit; it reads no tensor, so it waits for no device."""
    x, offsets = call.x, call.offsets
    if call.activation not in ACTIVATIONS:
        raise ValueError(f"`activation` is {call.activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
    if len(offsets) < 2 or offsets[0] != 0 or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"`offsets` is {tuple(offsets)}; it must start at 0, never decrease and name a unit.")
    if x.dim() != 2:
        raise ValueError(f"`x` has shape {tuple(x.shape)}; it must be tokens × d_model.")
    (n, d), f, p = x.shape, offsets[-1], len(offsets) - 1
    if not 0 <= call.n_shared <= call.k <= p:
        raise ValueError(f"`k` is {call.k} of {p} units, {call.n_shared} shared; it must be between these two.")
    matrix, vector = (f, d), (f,)
    shapes = {"W_in": matrix, "W_gate": matrix, "W_out": matrix, "b_in": vector, "b_gate": vector}
    for name, shape in {**shapes, "scale": vector, "whole": (n,)}.items():
        tensor = getattr(call, name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}; x and offsets ask for {tuple(shape)}.")
        if name in shapes and tensor.dtype != x.dtype:
            raise ValueError(f"`{name}` is {tensor.dtype}; it must be of the type of x ({x.dtype}).")
        if tensor.device != x.device:
            raise ValueError(f"`{name}` is on {tensor.device}; it must be where x is ({x.device}).")
    if call.scale.dtype != torch.float32:
        raise ValueError(f"`scale` is {call.scale.dtype}; it must be torch.float32.")
    if call.whole is not None and call.whole.dtype != torch.bool:
        raise ValueError(f"`whole` is {call.whole.dtype}; it must be torch.bool.")


def _cast(call: GateCall) -> GateCall:
    """Cast the call to the autocast type under autocast, as `F.linear` would."""
    device = call.x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # asking raises for `meta`
        return call
    dtype = torch.get_autocast_dtype(device)
    return GateCall._make([*(None if tensor is None else tensor.to(dtype) for tensor in call[:6]), *call[6:]])


def gate_select(call: GateCall) -> Tensor:
    """Return the units [n, p] bool that each token runs; it has no gradient.

    c = |act(x W_gateᵀ + b_gate)| · scale; a unit's score is c of its neuron, or the 2-norm of c over its neurons. The
    shared units run, and of the others the k − n_shared of largest score, the left one of equals; every unit where
    `whole`. Raises ValueError if shapes do not fit.
    """
    call = _cast(call)
    check_gate_call(call)
    with torch.no_grad():
        scores = unit_scores(gate_activations(call), call.scale, call.offsets)
        return select_reference(scores, call.k, call.n_shared, call.whole)


def gate_mlp(call: GateCall, backend: str = "auto") -> Tensor:
    """Return y [n, d] = Σ over neurons i of the units that `gate_select` chooses of act(g_i) · u_i · W_out[i].

    g = x W_gateᵀ + b_gate, u = x W_inᵀ + b_in. The output bias is not added here. It is differentiable in x, W_in,
    b_in, W_gate, b_gate and W_out. Raises ValueError if shapes do not fit or a backend does not exist.
    """
    call = _cast(call)
    check_gate_call(call)
    if backend not in GATE_BACKENDS:
        raise ValueError(f"`backend` is {backend!r}; it must be one of {', '.join(GATE_BACKENDS)}.")
    return gate_mlp_reference(call)
