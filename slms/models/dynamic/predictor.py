"""Fits a low-rank replacement for a matrix that is best on the inputs it will see.

Shapes: n calibration tokens, d inputs, f outputs, q rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LowRankMap(NamedTuple):
    """x W ᵀ ≈ (x narrowᵀ) wideᵀ + shift."""

    narrow: Tensor
    """[q, d]"""
    wide: Tensor
    """[f, q]"""
    shift: Tensor
    """[f]"""


def fit_low_rank(W: Tensor, x: Tensor, rank: int, ridge: float = 1e-4) -> LowRankMap:
    """Fit the map of this rank that minimises E‖(x − x̂) Wᵀ‖² over x [n, d] for W [f, d] (reduced-rank regression).

    With C = E[(x − x̄)ᵀ(x − x̄)] + ridge · mean diag C and V the q leading right singular vectors of C^½ Wᵀ, it is
    W V Vᵀ (Izenman, 1975). Raises ValueError unless the rank is between 1 and min(f, d).
    """
    if not 1 <= rank <= min(W.shape):
        raise ValueError(f"`rank` is {rank}; it must be from 1 to {min(W.shape)}.")
    mean = x.mean(0)
    centred = (x - mean).double()
    C = centred.T @ centred / len(x)
    C.diagonal().add_(ridge * C.diagonal().mean().clamp_min(1e-12))
    # V holds the leading eigenvectors of W C Wᵀ [f, f]; the [d, d] problem LᵀWᵀW L with C = L Lᵀ has the same values.
    L = torch.linalg.cholesky(C)
    A = W.double() @ L
    vectors = torch.linalg.eigh(A.T @ A).eigenvectors[:, -rank:]
    V = torch.linalg.qr(A @ vectors).Q
    narrow = (V.T @ W.double()).to(W.dtype)
    wide = V.to(W.dtype)
    return LowRankMap(narrow, wide, mean @ W.T - (mean @ narrow.T) @ wide.T)
