"""The routed MLP in plain PyTorch, the specification against which every other backend is tested.

Shapes: n tokens, d model, f neurons, p pathways.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.call import Call


def neuron_weights(gates: Tensor, chosen: Tensor, offsets: Sequence[int]) -> Tensor:
    """Each pathway's gate repeated over its neurons, zero where not chosen: [n, p] -> [n, f].

    >>> neuron_weights(torch.tensor([[0.5, 2.0]]), torch.tensor([[False, True]]), (0, 1, 3))
    tensor([[0., 2., 2.]])
    """
    sizes = [end - start for start, end in pairwise(offsets)]
    columns = [p for p, size in enumerate(sizes) for _ in range(size)]
    return torch.where(chosen, gates, 0)[:, columns]


def all_neurons(call: Call) -> Tensor:
    """Activations [n, f] of every neuron: act(x W_inᵀ + b_in); gated, act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in)."""
    act = ACTIVATIONS[call.activation]
    up = F.linear(call.x, call.W_in, call.b_in)
    return act(up) if call.W_gate is None else act(F.linear(call.x, call.W_gate, call.b_gate)) * up


def routed_mlp_reference(call: Call) -> Tensor:
    """y [n, d] = (w ⊙ h) W_out: compute all neurons h, then weight them by w, their pathway's gate or zero.

    It executes dense FLOPs.
    """
    hidden = all_neurons(call)
    return (hidden * neuron_weights(call.gates, call.chosen, call.offsets).to(hidden.dtype)) @ call.W_out
