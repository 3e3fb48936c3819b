"""What a latent writes to the logits along the direct path: decoder row → residual stream → final norm → unembedding.

Layers in between are skipped, so this is only the direct effect of the latent.

Shapes: n tokens, d model, o width of a site, s latents, v vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.anatomy import family_of, find_mlps
from slms.models.sites import Site
from slms.models.token_loss import ROOM
from slms.models.weights import read_mlp

FINAL_NORMS = ("ln_f", "final_layer_norm", "norm")
METHOD = (
    "W_U J w: w the decoder row, J the Jacobian of the final norm averaged over tokens, W_U the unembedding; "
    "logits are centred over the vocabulary and are per unit of activation; later layers are skipped"
)


class Effects(NamedTuple):
    """The tokens that each latent promotes and suppresses most, strongest first: ids and logits [s, k]."""

    promoted: Tensor
    up: Tensor
    suppressed: Tensor
    down: Tensor


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Find the norm between the last layer and the unembedding.

    Raises:
        ValueError: the model has no such norm under a known name.
    """
    parent = model.get_submodule(family_of(model).layers.rpartition(".")[0])
    for name in FINAL_NORMS:
        if isinstance(found := getattr(parent, name, None), nn.Module):
            return found
    raise ValueError(f"{type(model).__name__}: no final norm found; its name must be one of {', '.join(FINAL_NORMS)}")


def mean_jacobian(norm: nn.Module, x: Tensor) -> Tensor:
    """J [d, d] = mean over rows of x [n, d] of ∂norm(x)/∂x. It is exact for any norm, including its radial part."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for row in x:
        total += torch.autograd.functional.jacobian(norm, row[None], vectorize=True)[0, :, 0].double()
    return (total / len(x)).to(x.dtype)


def written(model: PreTrainedModel, site: Site, W_dec: Tensor) -> Tensor | str:
    """What decoder rows W_dec [s, o] at `site` add to the residual stream, [s, d], or why they add nothing directly."""
    layer = cast(nn.ModuleList, model.get_submodule(family_of(model).layers))[site.layer]
    if site.kind == "mlp_in":
        return "the input of an MLP reaches the logits through the MLP only"
    if site.kind != "residual" and hasattr(layer, "post_feedforward_layernorm"):
        return "this architecture norms the output of its MLPs: there is no linear path to the residual stream"
    if site.kind == "neurons":
        return W_dec @ read_mlp(find_mlps(model)[site.layer]).W_out.to(W_dec.dtype)
    return W_dec


@torch.no_grad()
def logit_effects(model: PreTrainedModel, directions: Tensor, last_residuals: Tensor, k: int = 10) -> Effects:
    """The k tokens whose logits each direction [s, d] raises and lowers most (`METHOD`), per unit along it.

    Args:
        model: the model, which has the final norm and the unembedding.
        directions: directions in the residual stream, of any length.
        last_residuals: [n, d] residual stream after the last layer at some tokens; the norm is linearised at each.
    """
    head = model.get_output_embeddings().weight
    directions = directions @ mean_jacobian(final_norm(model), last_residuals).T.to(directions.dtype)
    k = min(k, len(head))
    parts = []
    for some in directions.split(max(ROOM // len(head), 1)):
        logits = some @ head.T.to(some.dtype)
        logits = logits - logits.mean(1, keepdim=True)
        up, down = logits.topk(k, dim=1), logits.topk(k, dim=1, largest=False)
        parts.append((up.indices, up.values, down.indices, down.values))
    return Effects(*(torch.cat(column) for column in zip(*parts, strict=True)))
