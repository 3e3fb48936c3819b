"""Which implementation runs a routed MLP: an explicit one, or the one expected to be fastest here."""

from torch import Tensor

from kernels.reference import ACTIVATIONS, routed_mlp_reference

BACKENDS = ("auto", "reference")


def check_arguments(
    x: Tensor, W_in: Tensor, W_out: Tensor, gates: Tensor, chosen: Tensor, offsets: tuple[int, ...], activation: str
) -> None:
    """Raises ValueError where shapes or names do not fit; looks at no tensor's contents, so it never waits for a device."""
    (n, d), f, p = x.shape, offsets[-1], len(offsets) - 1
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
    if offsets[0] != 0 or any(a > b for a, b in zip(offsets, offsets[1:], strict=False)):
        raise ValueError(f"`offsets` is {offsets}; it must start at 0 and never decrease.")
    for name, tensor, shape in (
        ("W_in", W_in, (f, d)),
        ("W_out", W_out, (f, d)),
        ("gates", gates, (n, p)),
        ("chosen", chosen, (n, p)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}; x and offsets ask for {shape}.")


def routed_mlp(
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
    backend: str = "auto",
) -> Tensor:
    """y = Σ over chosen pathways p of gates[:, p] · h_p W_out_p, with h_p the hidden activations of that pathway's neurons.

    h = act(x W_inᵀ + b_in); gated: h = act(x W_gateᵀ + b_gate) ⊙ (x W_inᵀ + b_in). The output bias is not added here.
    x [n, d]; W_in, W_gate, W_out [f, d]; b_in, b_gate [f]; gates [n, p]; chosen [n, p] bool; offsets: p + 1 ints,
    pathway i owns neurons offsets[i] to offsets[i + 1]. Returns y [n, d]. Differentiable in x, weights, biases and
    gates (zero where not chosen). Raises ValueError for an unknown backend or activation or shapes that do not fit.
    """
    check_arguments(x, W_in, W_out, gates, chosen, offsets, activation)
    if backend not in BACKENDS:
        raise ValueError(f"`backend` is {backend!r}; it must be one of {', '.join(BACKENDS)}.")
    return routed_mlp_reference(
        x, W_in, W_out, gates, chosen, offsets, activation=activation, b_in=b_in, W_gate=W_gate, b_gate=b_gate
    )


def explain(n_tokens: int, d_model: int, offsets: tuple[int, ...], density: float, dtype=None, device: str = "cpu") -> str:
    """One line: the backend that "auto" picks for such a call, and why."""
    return f"reference for {n_tokens} tokens: the only implementation so far"
