"""The norm in front of a layer's MLP, as a normalisation and an affine map.

Shapes: n tokens, d model.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.anatomy import family_of

NAMES = ("ln_2", "pre_feedforward_layernorm", "post_attention_layernorm")


class Affine(NamedTuple):
    """What a norm does after it has normalised: x ↦ weight ∘ x + bias, both [d]."""

    weight: Tensor
    bias: Tensor


@torch.no_grad()
def mlp_norm(model: PreTrainedModel, layer: int) -> Affine:
    """Return the affine map of the norm whose output layer `layer`'s MLP reads.

    The map is read from the norm's own outputs: LayerNorm and RMSNorm give opposite normalised vectors for x and −x.

    Raises:
        ValueError: the layer has no norm under a known name, or it is neither of the two.
    """
    block = cast(nn.ModuleList, model.get_submodule(family_of(model).layers))[layer]
    norm = next((found for name in NAMES if isinstance(found := getattr(block, name, None), nn.Module)), None)
    if norm is None:
        raise ValueError(f"layer {layer}: no norm before the MLP; its name must be one of {', '.join(NAMES)}")
    d = model.config.hidden_size
    x = torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(model.device)
    parameter = next(norm.parameters())
    plus, minus = (norm(sign * x.to(parameter.dtype)).float() for sign in (1, -1))
    bias = (plus + minus) / 2
    for centred in (x - x.mean(), x):
        weight = (plus - bias) / (centred / centred.square().mean().sqrt())
        again = norm(2 * x.roll(1).to(parameter.dtype)).float()
        rolled = centred.roll(1) / centred.square().mean().sqrt()
        if torch.allclose(again, weight * rolled + bias, rtol=1e-3, atol=1e-3 * float(plus.abs().max())):
            return Affine(weight, bias)
    raise ValueError(f"layer {layer}: {type(norm).__name__} is neither a LayerNorm nor an RMSNorm")
