"""Activation sparsity at the input of the down-projection.

Shapes: n tokens, f neurons, d model. `activations` are the values that W_out multiplies.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class ActivationSparsity(NamedTuple):
    """Five means over tokens, of contributions e_i = |a_i| · ‖w_out,i‖; tokens without contributions are left out."""

    gini: Tensor
    """Gini coefficient of e: 0 if all contribute equally, 1 − 1/f if one does (Hurley & Rickard 2009, table I)"""
    hoyer: Tensor
    """(√f − ‖e‖₁/‖e‖₂) / (√f − 1): 0 if all contribute equally, 1 if one neuron does (Hoyer 2004)"""
    top_mass: Tensor
    """smallest share of neurons that holds .9 of Σ e"""
    participation: Tensor
    """(Σ e)² / (f Σ e²): 1 if all contribute equally, 1/f if one neuron does"""
    zeros: Tensor
    """share of activations that are exactly 0, over all tokens"""


class LegacySparsity(NamedTuple):
    """Activation sparsity by the formulas of the prototype *Scaling Specialization in Dense LMs*."""

    frac: Tensor
    """share of activations above the threshold"""
    pr: Tensor
    """(Σ a⁺)² / Σ (a⁺)² pooled over tokens and neurons: grows with both, hence `participation`"""


def sparsity_per_token(activations: Tensor, out_norm: Tensor | None = None, mass: float = 0.9) -> Tensor:
    """The measures [n, 5] of each token, as in `ActivationSparsity`; all but `zeros` are NaN without any contribution.

    Args:
        activations: [n, f]; out_norm: [f], ‖w_out,i‖, None means 1; mass: share of Σ e for `top_mass`.
    """
    contribution = activations.abs().float()
    if out_norm is not None:
        contribution = contribution * out_norm.float()
    f = contribution.shape[-1]
    # A token's sums are in float32, which adds in pairs: it equals float64 to 1e-6 in a third of the time.
    ascending = _sorted(contribution)
    total = ascending.sum(-1)
    norm = torch.linalg.vector_norm(ascending, dim=-1)
    rank = torch.arange(1, f + 1, device=activations.device)
    # 1 − 2 Σ_k e_(k)/‖e‖₁ · (f − k + ½)/f, e ascending
    gini = 1 - 2 * torch.einsum("nf,f->n", ascending, (f - rank + 0.5) / f) / total
    hoyer = (f**0.5 - total / norm) / (f**0.5 - 1)
    # The k smallest that together hold at most 1 − mass can go.
    least = ((1 - mass) * total * (1 + 1e-6))[:, None]
    dropped = torch.searchsorted(ascending.cumsum(-1), least, right=True)[:, 0]
    top_mass = torch.where(total > 0, (f - dropped) / f, torch.nan)
    participation = (total / norm).square() / f
    if out_norm is None or bool((out_norm > 0).all()):
        zeros = torch.searchsorted(ascending, torch.zeros_like(least), right=True)[:, 0] / f
    else:
        zeros = (activations == 0).float().mean(-1)
    return torch.stack([gini, hoyer, top_mass, participation, zeros], dim=-1).double()


def _sorted(fresh: Tensor) -> Tensor:
    """Sort ascending along the last dimension; may reuse the memory of `fresh`."""
    if fresh.device.type == "cpu":
        array = fresh.detach().contiguous().numpy()
        array.sort(
            axis=-1
        )  # NumPy's vectorised sort is 15 to 24 times as fast as torch's on one core (256 to 4096 wide)
        return torch.from_numpy(array)
    return fresh.sort(dim=-1).values


def activation_sparsity(activations: Tensor, out_norm: Tensor | None = None, mass: float = 0.9) -> ActivationSparsity:
    """How few neurons carry a token's MLP output, by five measures of the activations [n, f].

    >>> one_of_four = activation_sparsity(torch.tensor([[0.0, 3.0, 0.0, 0.0]]))
    >>> [round(float(x), 3) for x in one_of_four]
    [0.75, 1.0, 0.25, 0.25, 0.75]
    """
    return ActivationSparsity(*sparsity_per_token(activations, out_norm, mass).nanmean(0))


def activation_sparsity_legacy(activations: Tensor, threshold: float = 0.0) -> LegacySparsity:
    """The prototype's two numbers (`LegacySparsity`) of any activations, pooled over all their elements."""
    positive = activations.double().clamp(min=0)
    return LegacySparsity(
        frac=(activations > threshold).double().mean(), pr=positive.sum().square() / positive.square().sum()
    )


def dropped_share(activations: Tensor, W_out: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """CETT and density if neurons that contribute less than a threshold are skipped (ProSparse, 2402.13516, eq. 4–6).

    CETT = ‖Σ_{i: e_i < threshold} a_i w_i‖ / ‖Σ_i a_i w_i‖, e_i = |a_i| ‖w_i‖; density is the share of neurons kept.

    Args:
        activations: [n, f]; W_out: [f, d], one row per neuron; threshold: in units of e.

    Returns:
        CETT [n] and density [n]; a token whose MLP output is 0 has CETT 0.
    """
    small = activations.abs() * W_out.norm(dim=-1) < threshold
    lost = torch.einsum("nf,fd->nd", activations * small, W_out).norm(dim=-1)
    whole = torch.einsum("nf,fd->nd", activations, W_out).norm(dim=-1)
    return torch.where(whole > 0, lost / whole, 0.0), 1 - small.double().mean(-1)


def cett_threshold(activations: Tensor, W_out: Tensor, target: float, steps: int = 16) -> float:
    """The largest threshold on e_i = |a_i| ‖w_i‖ at which the mean CETT over tokens is at most `target`.

    It bisects the quantiles of e, so `steps` halvings resolve the density to 2^−steps. Arguments as in `dropped_share`.
    """
    if not target >= 0:
        raise ValueError(f"target is {target}; a CETT must be at least 0.")
    magnitudes = (activations.abs() * W_out.norm(dim=-1)).flatten().sort().values

    def cett(quantile: float) -> float:
        return float(dropped_share(activations, W_out, threshold_at(quantile))[0].mean())

    def threshold_at(quantile: float) -> float:
        return float(magnitudes[min(int(quantile * len(magnitudes)), len(magnitudes) - 1)])

    return threshold_at(largest_within(cett, target, 0.0, 1.0, steps))


def largest_within(measure: Callable[[float], float], limit: float, low: float, high: float, steps: int = 16) -> float:
    """Find by bisection the largest x in [low, high] with measure(x) ≤ limit, for a measure that rises with x.

    The headline AS is `largest_within` of perplexity(CETT) at 1.01 × the dense one. Returns low if no x qualifies.
    """
    if measure(high) <= limit:
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        if measure(middle) <= limit:
            low = middle
        else:
            high = middle
    return low
