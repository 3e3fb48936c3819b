"""Hooks that read, and may replace, the activations of one site during a model's forward passes.

Shapes: d model, f neurons.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from slms.models.anatomy import family_of
from slms.models.routed_heads import RoutedHeads
from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import neurons, read_mlp


def attach(
    model: PreTrainedModel, kind: str, index: int, pathway: int | None, see: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Call `see` at each forward with the activations [..., d] of a site of layer `index`; its result replaces them.

    Args:
        model: the model that has the site.
        kind: as in `slms.models.sites`, not `cross`; or `heads`, which coders do not read: the numbers [..., h·e] that
            the query heads pass to the output projection, zero for a head that was not chosen.
        index: the layer.
        pathway: the pathway, of kind `pathway`.
        see: called with the activations; unless it returns None, its result takes their place.
    """
    family = family_of(model)
    layer = model.get_submodule(f"{family.layers}.{index}")
    mlp, attention = getattr(layer, family.mlp), layer.get_submodule(family.attention)
    out = attention.out if isinstance(attention, RoutedHeads) else getattr(attention, family.out)

    def on_input(_: nn.Module, inputs: tuple):
        new = see(inputs[0])
        return None if new is None else (new, *inputs[1:])

    def on_output(_: nn.Module, inputs: tuple, output):
        new = see(output[0] if isinstance(output, tuple) else output)
        return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

    def on_part(module: RoutedMLP, inputs: tuple, output: Tensor):
        weights, kept = _routed_part(module, inputs[0], pathway)
        new = see(kept if pathway is None else kept @ weights)
        if new is None:
            return None
        delta = (new - kept) @ weights if pathway is None else new - kept @ weights
        return output + delta.to(output.dtype)

    match kind:
        case "residual":
            return layer.register_forward_hook(on_output)
        case "mlp_out":
            return mlp.register_forward_hook(on_output)
        case "mlp_in":
            return mlp.register_forward_pre_hook(on_input)
        case "heads":
            return out.register_forward_pre_hook(on_input)
        case "neurons" if not isinstance(mlp, RoutedMLP):
            return getattr(mlp, family.down).register_forward_pre_hook(on_input)
        case _:
            return mlp.register_forward_hook(on_part)


def _routed_part(mlp: RoutedMLP, x: Tensor, pathway: int | None) -> tuple[Tensor, Tensor]:
    """Return W_out [f, d] and the gated activations [..., f] of all neurons or one pathway's, in dense order."""
    flat = rearrange(x, "... d -> (...) d")
    routes = mlp.routes(flat)
    weights = read_mlp(mlp)
    gated = mlp.weigh_dense(neurons(weights, flat), routes)
    if pathway is not None:
        mine = mlp.permutation[mlp.offsets[pathway] : mlp.offsets[pathway + 1]]
        return weights.W_out[mine], gated[:, mine].view(*x.shape[:-1], -1)
    return weights.W_out, gated.view(*x.shape[:-1], -1)
