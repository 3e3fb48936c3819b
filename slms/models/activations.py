"""Reads, by hooks, what flows through a model's MLPs during its forward passes.

Shapes: b blocks, t position, n tokens (b·t), d model, f neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.anatomy import family_of, find_attentions, find_mlps
from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import family_of_mlp, neurons, read_mlp

Read = Callable[[Tensor], Tensor]


@contextmanager
def _captured(points: dict[int, tuple[nn.Module, Read]], pre: bool = True) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that every forward fills with {index: read(the module's input, or its output where not ``pre``)}."""
    found: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for index, (module, read) in points.items():

            def hook(
                _: nn.Module, inputs: tuple, output: Tensor | None = None, index: int = index, read: Read = read
            ) -> None:
                found[index] = read(inputs[0] if output is None else output)

            handle = module.register_forward_pre_hook(hook) if pre else module.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield found


def _chosen_mlps(model: PreTrainedModel, layers: Iterable[int] | None) -> dict[int, nn.Module]:
    mlps = find_mlps(model)
    wanted = list(mlps if layers is None else layers)
    unknown = [i for i in wanted if i not in mlps]
    if unknown:
        raise ValueError(f"`layers` names {unknown[0]}; the model has layers 0 to {len(mlps) - 1}.")
    return {i: mlps[i] for i in wanted}


class _Enough(Exception):
    """Raised once the last requested layer has been computed."""


@torch.no_grad()
def run_up_to(model: PreTrainedModel, input_ids: Tensor, last: int) -> None:
    """Run a model on token blocks [b, t] up to and including layer `last`, without further layers or the head."""

    def stop(*_: object) -> None:
        raise _Enough

    layer = model.get_submodule(f"{family_of(model).layers}.{last}")
    assert isinstance(layer, nn.Module)
    handle = layer.register_forward_hook(stop)
    try:
        with suppress(_Enough):
            model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        handle.remove()


def _flat(x: Tensor) -> Tensor:
    return rearrange(x, "... d -> (...) d")


@contextmanager
def mlp_inputs(model: PreTrainedModel, layers: Iterable[int] | None = None) -> Iterator[dict[int, Tensor]]:
    """Yield {layer: inputs [n, d] of its MLP}, which every forward fills; by default for all layers."""
    with _captured({i: (mlp, _flat) for i, mlp in _chosen_mlps(model, layers).items()}) as found:
        yield found


@contextmanager
def attention_states(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Yield {layer: [n, d + h·e], the inputs of its dense attention beside its heads' outputs}."""
    found: dict[int, Tensor] = {}
    attentions, out = find_attentions(model), family_of(model).out
    with ExitStack() as stack:
        for index in layers:

            def enter(_: nn.Module, args: tuple, kwargs: dict, index: int = index) -> None:
                found[index] = _flat(args[0] if args else kwargs["hidden_states"])

            def leave(_: nn.Module, args: tuple, index: int = index) -> None:
                found[index] = torch.cat([found[index], _flat(args[0])], 1)

            stack.callback(attentions[index].register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(getattr(attentions[index], out).register_forward_pre_hook(leave).remove)
        yield found


@contextmanager
def mlp_outputs(model: PreTrainedModel, layers: Iterable[int] | None = None) -> Iterator[dict[int, Tensor]]:
    """Yield {layer: outputs [b, t, d] of its MLP, before the residual is added}, which every forward fills."""
    with _captured({i: (mlp, lambda y: y) for i, mlp in _chosen_mlps(model, layers).items()}, pre=False) as found:
        yield found


@contextmanager
def neuron_activations(model: PreTrainedModel, layers: Iterable[int] | None = None) -> Iterator[dict[int, Tensor]]:
    """Yield {layer: activations [n, f] of its neurons}, without gradients, which every forward fills.

    They are read at the input of the down-projection. Those of a routed MLP are in the dense model's order of neurons
    and multiplied by the gates, so they are zero where a neuron's pathway was not chosen.
    """

    def point(mlp: nn.Module) -> tuple[nn.Module, Read]:
        if isinstance(mlp, RoutedMLP):
            return mlp, lambda x: _routed_neurons(mlp, _flat(x))
        return getattr(mlp, family_of_mlp(mlp).down), lambda h: _flat(h).detach()

    with _captured({i: point(mlp) for i, mlp in _chosen_mlps(model, layers).items()}) as found:
        yield found


@torch.no_grad()
def _routed_neurons(mlp: RoutedMLP, x: Tensor) -> Tensor:
    return mlp.weigh_dense(neurons(read_mlp(mlp), x), mlp.routes(x))
