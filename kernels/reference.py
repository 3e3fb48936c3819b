"""The routed MLP in plain PyTorch: the specification that every other backend is tested against.

Shapes: n tokens, d model, f neurons, p pathways.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda a: F.gelu(a, approximate="tanh"),
    "gelu_pytorch_tanh": lambda a: F.gelu(a, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def neuron_weights(gates: Tensor, chosen: Tensor, offsets: tuple[int, ...]) -> Tensor:
    """Each pathway's gate repeated over its neurons, zero where not chosen: [n, p] -> [n, f]."""
    sizes = [end - start for start, end in zip(offsets, offsets[1:], strict=False)]
    per_pathway = torch.where(chosen, gates, 0)
    if len(set(sizes)) == 1:
        return per_pathway.repeat_interleave(sizes[0], dim=1)
    repeats = torch.tensor(sizes, device=gates.device)
    return per_pathway.repeat_interleave(repeats, dim=1, output_size=offsets[-1])


def routed_mlp_reference(
    x: Tensor,
    W_in: Tensor,
    W_out: Tensor,
    gates: Tensor,
    chosen: Tensor,
    offsets: tuple[int, ...],
    *,
    activation: str,
    b_in: Tensor | None = None,
    W_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
) -> Tensor:
    """All neurons computed, then masked: y = (w ⊙ h) W_out with w_f = gate of the pathway of neuron f if chosen, else 0.

    h = act(x W_inᵀ + b_in), or act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in) in a gated MLP. Executes dense FLOPs.
    """
    act = ACTIVATIONS[activation]
    up = F.linear(x, W_in, b_in)
    hidden = act(up) if W_gate is None else act(F.linear(x, W_gate, b_gate)) * up
    return (hidden * neuron_weights(gates, chosen, offsets).to(hidden.dtype)) @ W_out
