"""The routed MLP in plain PyTorch: the specification that every other backend is tested against.

Shapes: n tokens, d model, f neurons, p pathways.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.activations import ACTIVATIONS


class Gradients(NamedTuple):
    """Gradients of the inputs of a routed MLP; an empty tensor stands for an input that is None."""

    x: Tensor
    W_in: Tensor
    b_in: Tensor
    W_gate: Tensor
    b_gate: Tensor
    W_out: Tensor
    gates: Tensor


def neuron_weights(gates: Tensor, chosen: Tensor, offsets: Sequence[int]) -> Tensor:
    """Each pathway's gate repeated over its neurons, zero where not chosen: [n, p] -> [n, f].

    >>> neuron_weights(torch.tensor([[0.5, 2.0]]), torch.tensor([[False, True]]), (0, 1, 3))
    tensor([[0., 2., 2.]])
    """
    sizes = [end - start for start, end in pairwise(offsets)]
    columns = [p for p, size in enumerate(sizes) for _ in range(size)]
    return torch.where(chosen, gates, 0)[:, columns]


def routed_mlp_reference(
    x: Tensor,
    W_in: Tensor,
    W_out: Tensor,
    gates: Tensor,
    chosen: Tensor,
    offsets: Sequence[int],
    *,
    activation: str,
    b_in: Tensor | None = None,
    W_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
) -> Tensor:
    """y = (w ⊙ h) W_out: all neurons computed, then weighted by their pathway's gate, or by zero where not chosen.

    h = act(x W_inᵀ + b_in), or act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in) in a gated MLP. Executes dense FLOPs.
    """
    act = ACTIVATIONS[activation]
    up = F.linear(x, W_in, b_in)
    hidden = act(up) if W_gate is None else act(F.linear(x, W_gate, b_gate)) * up
    return (hidden * neuron_weights(gates, chosen, offsets).to(hidden.dtype)) @ W_out
