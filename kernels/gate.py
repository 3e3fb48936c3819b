"""Runs a gated MLP whose neurons are chosen by their own gates: checks, choice, and the implementations by name.

rows: compiled loops, which form only the products that were chosen; it has a gradient on some CPUs. dense: library
products, a compiled choice between them. grouped: units as the pathways of `kernels.routed_mlp`. On a GPU, Triton's
kernels are behind these names.

Shapes: n tokens, d model, f neurons, p units.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.backends import GPU_TOKENS
from slms.kernels.call import Call, check_tensors
from slms.kernels.dispatch import routed_mlp
from slms.kernels.gate_plan import gate_plan, mean_density, rows_refusal, step_plan, step_refusal
from slms.kernels.gate_reference import (
    GateCall,
    choose_reference,
    gate_mlp_reference,
    keep_reference,
    per_neuron,
    unit_scores,
)
from slms.kernels.gate_train import chosen_product, chosen_rows

if TYPE_CHECKING:
    from slms.kernels.cpu.gate_rows import GateMLP

GATE_BACKENDS = ("auto", "reference", "dense", "rows", "grouped")


def check_gate_call(call: GateCall, typed: bool = True) -> None:
    """Raise ValueError if shapes, types or names do not fit; it reads no tensor, so it waits for no device.

    Without `typed`, x, weights and biases may differ in type.
    """
    x, offsets = call.x, call.offsets
    if call.activation not in ACTIVATIONS:
        raise ValueError(f"`activation` is {call.activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
    if x.dim() != 2:
        raise ValueError(f"`x` has shape {tuple(x.shape)}; it must be tokens × d_model.")
    d, f, p = x.shape[1], offsets[-1] if offsets else 0, len(offsets) - 1
    if not 0 <= call.n_shared <= call.k <= p:
        raise ValueError(f"`k` is {call.k} of {p} units, {call.n_shared} shared; it must be between these two.")
    if (call.k_out is None) != (call.out_scale is None):
        raise ValueError(f"`k_out` is {call.k_out}; it needs `out_scale`, and this needs `k_out`.")
    if call.k_out is not None and (units_of(offsets) or not 0 <= call.k_out <= call.k):
        raise ValueError(f"`k_out` is {call.k_out}; it must be from 0 to `k` ({call.k}), and the units single neurons.")
    if (call.least_out is None) != (call.least is None or call.k_out is None):
        raise ValueError("`least_out` is needed where `least` and `k_out` are given, and only there.")
    others = {"scale": (f,), "whole_above": (), "out_scale": (f,), "least": (), "least_out": ()}
    check_tensors(call, (f, d), others, typed)
    for name in others:
        if (tensor := getattr(call, name)) is not None and tensor.dtype != torch.float32:
            raise ValueError(f"`{name}` is {tensor.dtype}; it must be torch.float32.")


def _units(offsets: Sequence[int]) -> tuple[int, ...]:
    """The offsets, checked, as a tuple; empty for single neurons."""
    if isinstance(offsets, range) and offsets.start == 0 and offsets.step == 1:
        return ()
    if len(offsets) < 2 or offsets[0] != 0 or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"`offsets` is {tuple(offsets)}; it must start at 0, never decrease and name a unit.")
    single = len(offsets) - 1 == offsets[-1] and all(b - a == 1 for a, b in pairwise(offsets))
    return () if single else tuple(offsets)


_seen: dict[int, tuple[Sequence[int], tuple[int, ...]]] = {}


def units_of(offsets: Sequence[int]) -> tuple[int, ...]:
    """`_units`, computed once for each tuple: walking 1,537 offsets takes as long as a fifth of a token's MLP."""
    if torch.compiler.is_compiling() or not isinstance(offsets, tuple):
        return _units(offsets)
    known = _seen.get(id(offsets))
    if known is None or known[0] is not offsets:
        if len(_seen) > 4096:
            _seen.clear()
        known = _seen[id(offsets)] = offsets, _units(offsets)  # held, so that the id stays its own
    return known[1]


def _cast(call: GateCall) -> GateCall:
    """Cast the call to the autocast type under autocast, as `F.linear` would."""
    device = call.x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # asking raises for `meta`
        return call
    dtype = torch.get_autocast_dtype(device)
    return GateCall._make([*(None if tensor is None else tensor.to(dtype) for tensor in call[:6]), *call[6:]])


def _chosen(gate: Tensor, call: GateCall, units: tuple[int, ...]) -> Tensor:
    """Choose [n, p] by the gates [n, f] before their activation."""
    gate = gate.detach()
    if rows_refusal(gate.device.type, gate.dtype, len(call.offsets) - 1) is None:
        from slms.kernels.gate_ops import choose  # numba takes half a second to import and is optional

        return choose(gate, call, units)
    scores = unit_scores(ACTIVATIONS[call.activation](gate), call.scale, call.offsets)
    return choose_reference(scores, call)


def _kept(up: Tensor, gate: Tensor, call: GateCall, units: tuple[int, ...]) -> Tensor:
    """The neurons [n, f] that go through W_out, by up and gate [n, f] before the activation."""
    if call.k_out is None:
        return per_neuron(_chosen(gate, call, units), call.offsets)
    up, gate = up.detach(), gate.detach()
    if rows_refusal(gate.device.type, gate.dtype, len(call.offsets) - 1) is None:
        from slms.kernels.gate_ops import keep

        return keep(up, gate, call)
    return keep_reference(ACTIVATIONS[call.activation](gate) * up, _chosen(gate, call, units), call)


def gate_select(call: GateCall) -> Tensor:
    """Return the units [n, p] bool that each token runs; it has no gradient.

    c = |act(x W_gateᵀ + b_gate)| · scale; a unit's score is c of its neuron, or the 2-norm of c over its neurons. The
    shared units run, and of the others the k − n_shared of largest score, the left one of equals, or, with `least`,
    those that reach it; every unit of a token for which the 2-norm of the scores exceeds `whole_above`. Raises
    ValueError if shapes do not fit.
    """
    call = _cast(call)
    units = units_of(call.offsets)
    check_gate_call(call)
    with torch.no_grad():
        return _chosen(F.linear(call.x, call.W_gate, call.b_gate), call, units)


def _dense(call: GateCall, units: tuple[int, ...], gradients: bool) -> Tensor:
    x, compiling = call.x, torch.compiler.is_compiling()
    compiled = rows_refusal(x.device.type, x.dtype, len(call.offsets) - 1) is None
    if compiled and x.is_cuda and not compiling:
        from slms.kernels.gpu.gate_many import gate_many  # Triton exists for Linux alone

        return gate_many(call, units, gradients)
    up, gate = F.linear(call.x, call.W_in, call.b_in), F.linear(call.x, call.W_gate, call.b_gate)
    if gradients or compiling or not compiled or x.is_cuda:
        kept = _kept(up, gate, call, units)
        return torch.where(kept, ACTIVATIONS[call.activation](gate) * up, 0) @ call.W_out
    from slms.kernels.cpu.gate_rows import multiply_chosen

    multiply_chosen(up, gate, call, units)
    return up @ call.W_out


def _grouped(call: GateCall, units: tuple[int, ...]) -> Tensor:
    """The units as pathways whose gates are 1, chosen by the gates, which the grouped kernels compute once more."""
    if call.k_out is not None:
        raise ValueError(f"`backend` is 'grouped'; it runs whole units, and `k_out` is {call.k_out}.")
    with torch.no_grad():
        chosen = _chosen(F.linear(call.x, call.W_gate, call.b_gate), call, units)
    most = call.k if call.whole_above is None and call.least is None else None
    ones = torch.ones_like(chosen, dtype=call.x.dtype)
    routed = Call(*call[:6], ones, chosen, call.offsets, call.activation, most)
    return routed_mlp(routed, "triton" if call.x.is_cuda else "grouped")


def gate_fuses(x: Tensor, W_in: Tensor, density: float) -> bool:
    """Whether "auto" runs x [n, d] by "rows", eagerly and in the type of the weights, as `prepare_gate` does.

    density: as `mean_density`.
    """
    device = x.device.type
    return (
        type(x) is Tensor
        and device == "cpu"
        and x.dtype == W_in.dtype
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(device)
        and gate_plan(len(x), density, False, device, x.dtype)[0] == "rows"
    )


def prepare_gate(call: GateCall, screened: bool = False) -> "GateMLP":
    """Check a call and prepare `gate_mlp` by "rows" with all of it but x, as a function of other x [n, d].

    Raises ValueError if shapes do not fit. Nothing of the call may move; it may change in place unless the function
    says that something was `copied`, but for W_gate if it is `screened` (:class:`slms.kernels.cpu.gate_rows.GateMLP`).
    """
    check_gate_call(call)
    from slms.kernels.cpu.gate_rows import GateMLP  # numba takes half a second to import and is optional

    return GateMLP(call, units_of(call.offsets), screened)


def _step_pays(call: GateCall, units: tuple[int, ...]) -> bool:
    """Whether "auto" trains by "rows", which a compiled graph cannot hold; autocast has not cast the call yet."""
    return call.x.is_cpu and not torch.compiler.is_compiling() and step_plan(call, not units)[0] == "rows"


def gate_mlp_counted(call: GateCall) -> tuple[Tensor, Tensor]:
    """Return `gate_mlp` of a call with `least`, as training needs it, and what ran, int64 [3] on x's device.

    That is the units that ran, the neurons that went through W_out, and how many units could run, of all tokens.
    """
    units = units_of(call.offsets)
    check_gate_call(call, typed=False)
    if _step_pays(call, units):
        return chosen_rows(call)
    call = _cast(call)
    check_gate_call(call)
    gate, up = F.linear(call.x, call.W_gate, call.b_gate), F.linear(call.x, call.W_in, call.b_in)
    if not call.x.is_cpu or torch.compiler.is_compiling():  # blocks that fit in a cache are of use on a CPU alone
        a = ACTIVATIONS[call.activation](gate)
        h = a * up
        chosen = choose_reference(unit_scores(a, call.scale, call.offsets), call)
        kept = keep_reference(h, per_neuron(chosen, call.offsets), call)
        counts = torch.stack([chosen.sum(), kept.sum(), chosen.new_full((), chosen.numel(), dtype=torch.int64)])
        return torch.where(kept, h, 0) @ call.W_out, counts
    h, counts = chosen_product(gate, up, call, units)
    return h @ call.W_out, counts


def gate_mlp(call: GateCall, backend: str = "auto") -> Tensor:
    """Return y [n, d] = Σ over neurons i of the units that `gate_select` chooses of act(g_i) · u_i · W_out[i].

    With `k_out`, only the chosen neurons of largest |act(g_i) · u_i| · `out_scale`, or those in which it reaches
    `least_out`, have a term. g = x W_gateᵀ + b_gate, u = x W_inᵀ + b_in. The output bias is not added here. It is
    differentiable in x, W_in, b_in, W_gate, b_gate and W_out; by "rows" only once, and on some CPUs alone
    (`gate_plan.step_refusal`). Raises ValueError if shapes do not fit, or if a backend does not exist, cannot run here
    or has no gradient where one is needed.
    """
    if backend not in GATE_BACKENDS:
        raise ValueError(f"`backend` is {backend!r}; it must be one of {', '.join(GATE_BACKENDS)}.")
    units = units_of(call.offsets)
    gradients = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in call[:6])
    if gradients:
        check_gate_call(call, typed=False)
        if backend == "rows" and (why := step_refusal(call, not units)) is not None:
            raise ValueError(f"`backend` is 'rows', and an input needs a gradient; {why}.")
        if backend == "rows" or (backend == "auto" and _step_pays(call, units)):
            return chosen_rows(call)[0]
    call = _cast(call)
    check_gate_call(call)
    x = call.x
    device, p = x.device.type, len(call.offsets) - 1
    if backend == "auto":
        smallest = min(end - start for start, end in pairwise(units)) if units and x.is_cuda else 1
        density = mean_density(call.k, call.k_out, p)
        backend, _ = gate_plan(len(x), density, gradients, device, x.dtype, p, smallest)
    elif backend == "rows":
        why = rows_refusal(device, x.dtype, p) or ("it has no gradient, and an input needs one" if gradients else None)
        if why is None and x.is_cuda and len(x) > GPU_TOKENS:
            why = f"it takes up to {GPU_TOKENS} tokens on a GPU, and there are {len(x)}"
        if why is not None:
            raise ValueError(f"`backend` is 'rows'; {why}.")
    if backend == "reference":
        return gate_mlp_reference(call)
    if backend == "dense":
        return _dense(call, units, gradients)
    if backend == "grouped":
        return _grouped(call, units)
    from slms.kernels.gate_ops import by_rows

    return by_rows(call, units)
