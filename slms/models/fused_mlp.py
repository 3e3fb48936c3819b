"""A routed MLP as one compiled call, prepared at first use and again after a tensor has moved.

There is none unless the MLP infers unobserved, the call is faster, and every weight has the inputs' dtype and lies in
memory as it is used; that excludes weights computed by a parametrization, hook or adapter, and sharded or fake tensors.

Shapes: n tokens, d model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slms.kernels import Layer, Router, fuses, gate_fuses, mean_density, prepare_fused, prepare_gate
from slms.kernels.router import GATES
from slms.routing import GateSelector, PathwayRouter

if TYPE_CHECKING:
    from slms.kernels.cpu.fused import FusedMLP
    from slms.kernels.cpu.gate_rows import GateMLP
    from slms.models.routed_mlp import RoutedMLP


def fused_gate(mlp: RoutedMLP, x: Tensor) -> GateMLP | None:
    """Return the call, without the output bias, of an MLP whose gate chooses, for inputs like x [n, d]."""
    selector = mlp.router
    if not isinstance(selector, GateSelector):
        return None
    if mlp.training and selector.by_threshold(mlp._k):  # the budget needs to know what was chosen
        return None
    density = mean_density(mlp._k, mlp.k_out, mlp.config.n_pathways)
    if not _unobserved(mlp) or not gate_fuses(x, mlp.W_in, density):
        return None
    plain = _plain(mlp, selector)
    where = [selector.by_threshold(mlp._k), mlp.screened, *_where(mlp, x.dtype, plain)]
    prepared = mlp._prepared  # another thread may replace it
    if prepared is not None and prepared[0] == where:
        return prepared[1]
    call = mlp.gate_call(x, selector)
    held = (*call[1:6], call.scale, call.whole_above, call.out_scale, call.least, call.least_out)
    if not _as_they_lie(held, plain) or not _of_type(call[1:6], x.dtype):
        return None
    if mlp._modules.keys() != {"router"} or selector._modules:
        return None
    return _keep(mlp, where, prepare_gate(call, mlp.screened is not None))


def fused_backend(mlp: RoutedMLP, x: Tensor) -> str | None:
    """Return the backend of the call of an MLP whose router chooses, for x [n, d], or None if it is not faster."""
    config, p = mlp.config, mlp.config.n_pathways
    plain = (
        _unobserved(mlp)
        and isinstance(mlp.router, PathwayRouter)
        and mlp.router.group is None  # the call does not tell what it chose
        and config.rule == "top_k"
        and (config.n_shared == 0 or x.device.type == "cpu")
        and config.pool is None
        and mlp.router.gate in GATES
    )
    return fuses(x, mlp.W_in, mlp._k / p, p, mlp.W_gate is not None, config.backend) if plain else None


def fused_router(mlp: RoutedMLP, dtype: torch.dtype) -> Callable[[Tensor, str], Tensor] | None:
    """Return the call of an MLP whose router chooses, of inputs of this dtype and a backend."""
    router = mlp.router
    assert isinstance(router, PathwayRouter)
    hidden, out, n_shared = router.hidden, router.out, mlp.config.n_shared
    plain = _plain(mlp, router, out) if hidden is None else _plain(mlp, router, out, hidden)
    where = _where(mlp, dtype, plain)
    prepared = mlp._prepared  # another thread may replace it
    if prepared is not None and prepared[0] == where:
        return prepared[1]
    W, b = (None, None) if hidden is None else (hidden.weight, hidden.bias)
    ramp = router.ramp if router.blend is None else router.blend
    b_out: Tensor | None = out.bias
    if b_out is None:  # the compiled call always adds one
        plain.append(b_out := torch.zeros_like(router.selection_bias))
    chooser = Router(W, b, out.weight, b_out, router.selection_bias, mlp._k, router.gate, ramp, n_shared)
    weights = (mlp.W_in, mlp.b_in, mlp.W_gate, mlp.b_gate, mlp.W_out, mlp.b_out, mlp.mean_out)
    held = (*chooser[:5], ramp, *weights)
    if not _as_they_lie(held, plain) or not _of_type(held, dtype):
        return None
    if mlp._modules.keys() != {"router"} or any(module._modules for module in router.children()):
        return None
    return _keep(mlp, where, prepare_fused(Layer(chooser, *weights, mlp.offsets, mlp.activation)))


def fused_rows(mlp: RoutedMLP, x: Tensor) -> FusedMLP | None:
    """Return the call of an MLP whose router chooses if it runs x [n, d], on a CPU, by rows, and copies nothing."""
    if not isinstance(mlp.router, PathwayRouter) or fused_backend(mlp, x) != "rows":
        return None
    run: Any = fused_router(mlp, x.dtype)
    return None if run is None or run.copied else run


def _unobserved(mlp: RoutedMLP) -> bool:
    return mlp.recorder is None and mlp.router.chooser is None and not (mlp.training and mlp.dropout)


def _plain(*modules: nn.Module) -> list[Tensor]:
    """The modules' own parameters and buffers, but for those of special types."""
    owners: list[dict] = [owner for module in modules for owner in (module._parameters, module._buffers)]
    return [tensor for owner in owners for tensor in owner.values() if type(tensor) in (Tensor, nn.Parameter)]


def _where(mlp: RoutedMLP, dtype: torch.dtype, plain: list[Tensor]) -> list[object]:
    """What a call was prepared for: as long as it stays the same, so does the call."""
    return [mlp._k, dtype, *((tensor.data_ptr(), tensor.dtype) for tensor in plain)]


def _as_they_lie(held: Sequence[Tensor | None], plain: list[Tensor]) -> bool:
    known = {id(tensor) for tensor in plain}
    return all(tensor is None or id(tensor) in known for tensor in held)


def _of_type(held: Sequence[Any], dtype: torch.dtype) -> bool:
    return all(tensor is None or tensor.dtype == dtype for tensor in held)


def _keep(mlp: RoutedMLP, where: list[object], run: Any) -> Any:
    if not run.copied:  # it copies what is not contiguous, whose numbers may change later
        mlp._prepared = where, run
    return run
