"""Masked dense execution made cheap: the fallback where skipping does not pay (high density, very few or small tokens).

The same function as the reference; with equal pathways the gates are broadcast instead of repeated per neuron.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.activations import ACTIVATIONS
from kernels.reference import neuron_weights


def dense(
    x: Tensor,
    W_in: Tensor,
    b_in: Tensor | None,
    W_gate: Tensor | None,
    b_gate: Tensor | None,
    W_out: Tensor,
    gates: Tensor,
    chosen: Tensor,
    offsets: Sequence[int],
    activation: str,
) -> Tensor:
    """All neurons computed, then weighted; see `kernels.routed_mlp`."""
    act = ACTIVATIONS[activation]
    up = F.linear(x, W_in, b_in)
    hidden = act(up) if W_gate is None else act(F.linear(x, W_gate, b_gate)) * up
    sizes = {end - start for start, end in pairwise(offsets)}
    if len(sizes) == 1:
        n, p = chosen.shape
        weights = torch.where(chosen, gates, 0).to(hidden.dtype)
        hidden = (hidden.view(n, p, sizes.pop()) * weights.unsqueeze(2)).view(n, offsets[-1])
    else:
        hidden = hidden * neuron_weights(gates, chosen, offsets).to(hidden.dtype)
    return hidden @ W_out
