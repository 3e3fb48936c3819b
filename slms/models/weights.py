"""Reads the weights of a dense MLP, neuron-major: neuron i is row i of W_in (and W_gate) and row i of W_out.

Shapes: n tokens (b·t), d model, f neurons.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from slms.kernels.reference import ACTIVATIONS
from slms.models.families import FAMILIES, Family
from slms.models.speedups import FusedGELU


@runtime_checkable
class HasDenseWeights(Protocol):
    """An MLP that may keep its neurons in another order than the dense model from which it was made."""

    def dense_weights(self) -> MLPWeights:
        """Return copies of its weights in the dense order."""


class MLPWeights(NamedTuple):
    """A dense MLP, neuron-major. If gated, h = act(x W_gateᵀ + b_gate) ∘ (x W_inᵀ + b_in), y = h W_out + b_out."""

    W_in: Tensor
    """[f, d]"""
    W_out: Tensor
    """[f, d]; row i is column i of the down-projection's matrix."""
    b_in: Tensor | None
    b_out: Tensor | None
    W_gate: Tensor | None
    b_gate: Tensor | None
    activation: str

    def in_rows(self) -> MLPWeights:
        """Return the weights with each neuron one contiguous row of every matrix; copy what is stored by columns."""
        gate = None if self.W_gate is None else self.W_gate.contiguous()
        return self._replace(W_in=self.W_in.contiguous(), W_out=self.W_out.contiguous(), W_gate=gate)

    def in_order(self, order: Tensor) -> MLPWeights:
        """Return the weights with the neurons in another order [f]."""
        rows = ((name, getattr(self, name)) for name in OF_NEURONS)
        moved: dict[str, Any] = {name: None if w is None else w[order] for name, w in rows}
        return self._replace(**moved)


OF_NEURONS = ("W_in", "W_out", "W_gate", "b_in", "b_gate")
"""The weights with one row for each neuron."""


# transformers builds an activation from its name; this table finds the name of a module. `swish` and `silu` differ only
# in class.
_ACTIVATION_OF = {
    **{type(ACT2FN[name]): name for name in ACTIVATIONS},
    FusedGELU: "gelu_new",
    nn.SiLU: "silu",
}


def family_of_mlp(mlp: nn.Module) -> Family:
    """Return a family whose MLPs have the same parts as this one; raise ValueError if there is none."""
    for family in FAMILIES.values():
        if all(part is None or hasattr(mlp, part) for part in (family.up, family.down, family.act, family.gate)):
            return family
    raise ValueError(f"{type(mlp).__name__} is no known MLP; the families are {', '.join(FAMILIES)}.")


def _out_in(layer: nn.Linear | Conv1D) -> Tensor:
    """Return the weight [out, in] of a linear layer; GPT-2's Conv1D stores it as [in, out]."""
    return layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()


def _bias(layer: nn.Linear | Conv1D | None) -> Tensor | None:
    return None if layer is None or layer.bias is None else layer.bias.detach()


def read_mlp(mlp: nn.Module) -> MLPWeights:
    """Return neuron-major weights of a dense MLP (views of its parameters) or routed MLP (copies, in dense order)."""
    if isinstance(mlp, HasDenseWeights):  # a routed MLP
        return mlp.dense_weights()
    family = family_of_mlp(mlp)
    up, down, act = getattr(mlp, family.up), getattr(mlp, family.down), getattr(mlp, family.act)
    gate = getattr(mlp, family.gate) if family.gate else None
    if type(act) not in _ACTIVATION_OF:
        raise ValueError(
            f"activation {type(act).__name__} is not supported; it must be one of {', '.join(ACTIVATIONS)}."
        )
    return MLPWeights(
        W_in=_out_in(up),
        W_out=_out_in(down).T,
        b_in=_bias(up),
        b_out=_bias(down),
        W_gate=None if gate is None else _out_in(gate),
        b_gate=_bias(gate),
        activation=_ACTIVATION_OF[type(act)],
    )


def dropout_of(mlp: nn.Module) -> float:
    """Return the dropout rate on a dense MLP's output; only GPT-2 and GPT-Neo have dropout there."""
    dropout = getattr(mlp, "dropout", None)
    return dropout.p if isinstance(dropout, nn.Dropout) else 0.0


def neurons(weights: MLPWeights, x: Tensor) -> Tensor:
    """Compute the activations [n, f] of an MLP's neurons, the input of the down-projection, at inputs x [n, d]."""
    act = ACTIVATIONS[weights.activation]
    up = nn.functional.linear(x, weights.W_in, weights.b_in)
    return (
        up.mul_(act(nn.functional.linear(x, weights.W_gate, weights.b_gate))) if weights.W_gate is not None else act(up)
    )


def model_digest(model: nn.Module) -> str:
    """Return a digest that names a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
