"""Each kind's training loss in dense autograd, which specifies `Coder.loss`.

This shares only the parameters with the sparse path: every product is dense and every gradient is autograd's own.
Straight-through estimates are written as value + slope·(θ − detached θ).

Shapes: n tokens, d model, s latents, r dead latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slms.sae.base import Coder
from slms.sae.coders import BatchTopK, Gated, JumpReLU, ReLU, TopK


def reference_loss(coder: Coder, x: Tensor, y: Tensor, dead: Tensor | None = None) -> Tensor:
    """Compute the loss that `coder.loss(x, y, dead).total` must equal, including gradients."""
    config, kind = coder.config, coder.config.kind
    a = (x if coder.is_transcoder else x - coder.b_dec) @ coder.W_enc.T
    bias = coder.b_gate if isinstance(coder, Gated) else coder.b_enc
    assert bias is not None
    z = a + bias
    f, penalty = _features(coder, z, a)

    def output(acts: Tensor, frozen: bool = False) -> Tensor:
        def still(parameter: Tensor) -> Tensor:
            return parameter.detach() if frozen else parameter

        decoded = acts @ still(coder.W_dec) + still(coder.b_dec)
        return decoded if coder.W_skip is None else decoded + x @ still(coder.W_skip).T

    def error(acts: Tensor, frozen: bool = False) -> Tensor:
        return (y - output(acts, frozen)).square().sum(1).mean()

    if kind == "matryoshka":
        ends = [round(share * coder.d_sae) for share in config.prefixes]
        loss = torch.stack([error(f * (torch.arange(coder.d_sae) < end)) for end in ends]).mean()
    else:
        loss = error(f)
    if kind == "gated":
        loss = loss + error(z.relu(), frozen=True)
    loss = loss + config.sparsity * coder.sparsity_share * penalty
    if dead is None or not dead.any():
        return loss
    e = (y - output(f)).detach()
    k_aux = min(config.k_aux or coder.d_out // 2, int(dead.sum()))
    top = (z * _norms(coder)).masked_fill(~dead, -torch.inf).topk(k_aux, dim=1)
    acts = torch.zeros_like(z).scatter(1, top.indices, z.gather(1, top.indices).relu())
    aux = (e - acts @ coder.W_dec).square().sum() / (e - e.mean(0)).square().sum()
    return loss + config.aux * aux


def _norms(coder: Coder) -> Tensor:
    """Return the factors on activations by which latents are ranked: the decoder's norms, if they may differ from 1."""
    return torch.ones(coder.d_sae).to(coder.W_dec) if coder.unit_norm else coder.W_dec.detach().norm(dim=1)


def _features(coder: Coder, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the activations [n, s] and the penalty before its weight."""
    config, n = coder.config, len(z)
    match coder:
        case ReLU():
            return z.relu(), z.relu().sum(1).mean()
        case TopK():
            chosen = (z * _norms(coder)).topk(config.k, dim=1).indices
            return torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen).relu()), 0.0
        case BatchTopK():  # and Matryoshka
            chosen = (z * _norms(coder)).flatten().topk(n * config.k).indices
            return torch.zeros(z.numel()).to(z).scatter(0, chosen, z.flatten()[chosen].relu()).view_as(z), 0.0
        case JumpReLU():
            theta, eps = coder.threshold, config.bandwidth
            moving = theta - theta.detach()
            window = ((z - theta).abs() < eps / 2).to(z.dtype).detach()
            f = z.relu() * (z > theta) - theta.detach() / eps * window * moving
            l0 = ((z > theta).to(z.dtype) - window / eps * moving).sum(1).mean()
            return f, (l0 / config.k - 1).square()
        case Gated():
            return (a * coder.r_mag.exp() + coder.b_mag).relu() * (z > 0), z.relu().sum(1).mean()
        case _:
            raise AssertionError(config.kind)
