"""What goes into one routed MLP and what comes back: the one order of arguments that every backend and operator knows.

Shapes: n tokens, d model, f neurons, p pathways.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from kernels.router import Router

Weights = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]
"""W_in, b_in, W_gate, b_gate, W_out"""


class Call(NamedTuple):
    """The inputs of `kernels.routed_mlp`; the first eight are what its gradients are of, `chosen` apart."""

    x: Tensor
    """[n, d]"""
    W_in: Tensor
    """[f, d]"""
    b_in: Tensor | None
    """[f]"""
    W_gate: Tensor | None
    """[f, d], of a gated MLP"""
    b_gate: Tensor | None
    """[f]"""
    W_out: Tensor
    """[f, d]"""
    gates: Tensor
    """[n, p]"""
    chosen: Tensor
    """[n, p] bool"""
    offsets: Sequence[int]
    """p + 1 ints: pathway i owns neurons offsets[i] to offsets[i + 1]"""
    activation: str
    """a key of `kernels.ACTIVATIONS`"""
    most: int | None = None
    """pathways of a token at most, if known: a GPU reserves memory for as many, and tokens beyond that become NaN"""

    @property
    def weights(self) -> Weights:
        return self.W_in, self.b_in, self.W_gate, self.b_gate, self.W_out

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors whose gradients are wanted."""
        return [value for value in self if isinstance(value, Tensor) and value.requires_grad]

    def contiguous(self) -> "Call":
        """The same with contiguous tensors."""
        return Call._make(value.contiguous() if isinstance(value, Tensor) else value for value in self)


class Gradients(NamedTuple):
    """Gradients of the inputs of a routed MLP; an empty tensor stands for an input that is None."""

    x: Tensor
    W_in: Tensor
    b_in: Tensor
    W_gate: Tensor
    b_gate: Tensor
    W_out: Tensor
    gates: Tensor


class Layer(NamedTuple):
    """What a routed MLP holds, its router included: all but the tokens. See `kernels.prepare_fused`."""

    router: Router
    W_in: Tensor
    b_in: Tensor | None
    W_gate: Tensor | None
    b_gate: Tensor | None
    W_out: Tensor
    b_out: Tensor | None
    """[d]"""
    mean_out: Tensor | None
    """[p, d], added for every pathway that is not chosen"""
    offsets: Sequence[int]
    activation: str

    @property
    def weights(self) -> Weights:
        return self.W_in, self.b_in, self.W_gate, self.b_gate, self.W_out
