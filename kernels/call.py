"""The inputs and outputs of one routed MLP, in the one order of arguments that all backends and operators share.

Shapes: n tokens, d model, f neurons, p pathways.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from slms.kernels.router import Router

Weights = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]
"""W_in, b_in, W_gate, b_gate, W_out"""


class Call(NamedTuple):
    """The inputs of `kernels.routed_mlp`. The first eight, except `chosen`, have gradients."""

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
    """an upper bound on pathways per token, if known: a GPU reserves that much memory; a token beyond it becomes NaN"""

    @property
    def weights(self) -> Weights:
        return self.W_in, self.b_in, self.W_gate, self.b_gate, self.W_out

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that need gradients."""
        return [value for value in self if isinstance(value, Tensor) and value.requires_grad]

    def contiguous(self) -> "Call":
        """The same call with contiguous tensors."""
        return Call._make(value.contiguous() if isinstance(value, Tensor) else value for value in self)


class OfMLP(Protocol):
    """A call of an MLP, however its neurons are chosen."""

    @property
    def x(self) -> Tensor: ...


def check_tensors(
    call: OfMLP, matrix: tuple[int, int], others: Mapping[str, tuple[int, ...]], typed: bool = True
) -> None:
    """Raise ValueError if a tensor of a call does not fit its x, which it does not read.

    matrix: the shape [f, d] of W_in, W_gate and W_out, whose type, if `typed`, is that of x, as is that of the biases
    [f]; others: the shapes of the tensors with types of their own.
    """
    x, vector = call.x, matrix[:1]
    shapes = {"W_in": matrix, "W_gate": matrix, "W_out": matrix, "b_in": vector, "b_gate": vector}
    for name, shape in {**shapes, **others}.items():
        tensor = getattr(call, name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}; x and offsets ask for {tuple(shape)}.")
        if typed and name in shapes and tensor.dtype != x.dtype:
            raise ValueError(f"`{name}` is {tensor.dtype}; it must be of the type of x ({x.dtype}).")
        if tensor.device != x.device:
            raise ValueError(f"`{name}` is on {tensor.device}; it must be where x is ({x.device}).")


class Gradients(NamedTuple):
    """The gradients of the inputs of a routed MLP; if an input is None, its gradient is an empty tensor."""

    x: Tensor
    W_in: Tensor
    b_in: Tensor
    W_gate: Tensor
    b_gate: Tensor
    W_out: Tensor
    gates: Tensor


class Layer(NamedTuple):
    """All that a routed MLP and its router hold, without the tokens. See `kernels.prepare_fused`."""

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
