"""Cheap masked dense execution, the fallback if skipping does not pay (high density, very few or small tokens).

It computes the same as the reference; if pathways are equal, gates are broadcast instead of repeated per neuron.
"""

from itertools import pairwise

import torch
from torch import Tensor

from slms.kernels.call import Call
from slms.kernels.reference import all_neurons, neuron_weights


def dense(call: Call) -> Tensor:
    """Compute all neurons, then weight them; see `kernels.routed_mlp`."""
    hidden = all_neurons(call)
    sizes = {end - start for start, end in pairwise(call.offsets)}
    if len(sizes) == 1:
        n, p = call.chosen.shape
        weights = torch.where(call.chosen, call.gates, 0).to(hidden.dtype)
        hidden = (hidden.view(n, p, sizes.pop()) * weights.unsqueeze(2)).view(n, call.offsets[-1])
    else:
        hidden = hidden * neuron_weights(call.gates, call.chosen, call.offsets).to(hidden.dtype)
    return hidden @ call.W_out
