"""Masked dense execution made cheap: the fallback where skipping does not pay (high density, very few or small tokens).

The same function as the reference; with equal pathways the gates are broadcast instead of repeated per neuron.
"""

from itertools import pairwise

import torch
from torch import Tensor

from kernels.call import Call
from kernels.reference import all_neurons, neuron_weights


def dense(call: Call) -> Tensor:
    """All neurons computed, then weighted; see `kernels.routed_mlp`."""
    hidden = all_neurons(call)
    sizes = {end - start for start, end in pairwise(call.offsets)}
    if len(sizes) == 1:
        n, p = call.chosen.shape
        weights = torch.where(call.chosen, call.gates, 0).to(hidden.dtype)
        hidden = (hidden.view(n, p, sizes.pop()) * weights.unsqueeze(2)).view(n, call.offsets[-1])
    else:
        hidden = hidden * neuron_weights(call.gates, call.chosen, call.offsets).to(hidden.dtype)
    return hidden @ call.W_out
