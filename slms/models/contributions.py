"""Measures how much each pathway of a routed MLP contributes to its output.

Shapes: n tokens, d model, f neurons, p pathways.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import neurons


@torch.no_grad()
def contribution_norms(mlp: RoutedMLP) -> Callable[[Tensor], Tensor]:
    """A function from inputs [n, d] to the norms [n, p] of what is lost if each pathway is skipped.

    That is ‖f_p(x)‖ with f_p = h_p W_out_p, before the gate, or ‖f_p(x) − m_p‖ if the mean m_p replaces a skipped
    pathway. No tensor [n, p, d] is formed: with W_out_pᵀ = QR, ‖h W_out_p‖ = ‖h Rᵀ‖.
    """
    order = mlp.permutation
    dense = mlp.dense_weights()
    fp32 = {name: w.float() for name, w in dense._asdict().items() if isinstance(w, Tensor)}
    moved: dict[str, Any] = fp32 | {name: w[order] for name, w in fp32.items() if name != "b_out"}
    weights = dense._replace(**moved)
    parts = list(pairwise(mlp.offsets))
    triangles = [torch.linalg.qr(weights.W_out[a:b].T).R.T for a, b in parts]
    means = None if mlp.mean_out is None else mlp.mean_out.float()
    towards = None if means is None else [weights.W_out[a:b] @ m for (a, b), m in zip(parts, means, strict=True)]

    @torch.no_grad()
    def norms(x: Tensor) -> Tensor:
        h = neurons(weights, x.float())
        square = torch.stack([(h[:, a:b] @ R).square().sum(1) for (a, b), R in zip(parts, triangles, strict=True)], 1)
        if means is not None and towards is not None:
            inner = torch.stack([h[:, a:b] @ w for (a, b), w in zip(parts, towards, strict=True)], 1)
            square = square - 2 * inner + means.square().sum(1)
        return square.clamp(min=0).sqrt()

    return norms
