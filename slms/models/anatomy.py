"""Where the MLPs of a causal language model are, and what they are made of, for every supported architecture.

Shapes: n tokens (b·t), d model, f neurons.

Weights are read neuron-major: a neuron is row i of W_in (and W_gate) and row i of W_out, which is stored transposed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from kernels.reference import ACTIVATIONS
from slms.models.routed_mlp import RoutedMLP


class Adapter(NamedTuple):
    """Names of an architecture's MLP parts."""

    layers: str
    """Path of the list of layers from the causal language model."""
    up: str
    down: str
    gate: str | None = None
    """Projection that the activation is applied to in a gated MLP; None in a two-matrix MLP."""
    act: str = "act"
    mlp: str = "mlp"


_GPT = Adapter("transformer.h", "c_fc", "c_proj")
_NEOX = Adapter("gpt_neox.layers", "dense_h_to_4h", "dense_4h_to_h")
_GATED = Adapter("model.layers", "up_proj", "down_proj", "gate_proj", "act_fn")

ADAPTERS: dict[str, Adapter] = {
    "gpt_neo": _GPT,
    "gpt2": _GPT,
    "gpt_neox": _NEOX,
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
}
"""By transformers' ``model_type``; a routed model's is the same with ``routed_`` before it."""


class LayerInfo(NamedTuple):
    """One MLP of a model."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody looks for in a layer
    name: str
    """Module path, as in ``model.get_submodule``."""
    d_model: int
    d_ff: int
    activation: str
    """transformers' name of it."""
    gated: bool


class MLPWeights(NamedTuple):
    """A dense MLP, neuron-major. Gated: h = act(x W_gateᵀ + b_gate) ∘ (x W_inᵀ + b_in), y = h W_out + b_out."""

    W_in: Tensor
    """[f, d]"""
    W_out: Tensor
    """[f, d]: column i of the down-projection's matrix is row i here."""
    b_in: Tensor | None
    b_out: Tensor | None
    W_gate: Tensor | None
    b_gate: Tensor | None
    activation: str


class FusedGELU(nn.Module):
    """``gelu_new`` in one fused operation; transformers composes it of eight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x, approximate="tanh")


# transformers builds an activation from its name; read backwards, the module tells the name. `swish` and `silu` differ
# in class only.
_ACTIVATION_OF = {
    **{type(ACT2FN[name]): name for name in ACTIVATIONS},
    FusedGELU: "gelu_new",
    nn.SiLU: "silu",
}


def fuse_gelu(model: nn.Module) -> None:
    """Replace transformers' composed ``gelu_new`` modules by the equal fused one (13 % of a step at stories-1m)."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, FusedGELU())


def adapter_of(model: PreTrainedModel) -> Adapter:
    """The adapter of a model; raises ValueError naming the supported architectures where there is none."""
    kind = model.config.model_type.removeprefix("routed_")
    if kind not in ADAPTERS:
        raise ValueError(f"model type `{kind}` has no known MLP; the adapters are {', '.join(ADAPTERS)}.")
    return ADAPTERS[kind]


def find_mlps(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Each layer's MLP, dense or routed, by layer index."""
    adapter = adapter_of(model)
    return {i: getattr(layer, adapter.mlp) for i, layer in enumerate(_layers(model, adapter))}


def _layers(model: PreTrainedModel, adapter: Adapter) -> nn.ModuleList:
    layers = model.get_submodule(adapter.layers)
    assert isinstance(layers, nn.ModuleList), type(layers)
    return layers


def replace_mlp(model: PreTrainedModel, index: int, mlp: nn.Module) -> None:
    """Put another MLP in the place of layer ``index``'s."""
    adapter = adapter_of(model)
    setattr(_layers(model, adapter)[index], adapter.mlp, mlp)


def list_layers(model: PreTrainedModel | str) -> list[LayerInfo]:
    """Index, name, d_model, d_ff and activation of every MLP of a model, or of a named base (no weights are read)."""
    if isinstance(model, str):
        from slms.models.base import build_meta  # base stands above anatomy

        model = build_meta(model)
    adapter, layers = adapter_of(model), []
    for index, mlp in find_mlps(model).items():
        weights = read_mlp(mlp)
        f, d = weights.W_in.shape
        name = f"{adapter.layers}.{index}.{adapter.mlp}"
        layers.append(LayerInfo(index, name, d, f, weights.activation, weights.W_gate is not None))
    return layers


def named_layers(model: PreTrainedModel, names: Sequence[str] | None) -> list[int]:
    """Indices of the layers called `names`: `gpt_neox.layers.10.mlp`, or `10`, or `L10`; all of them for None.

    Raises:
        ValueError: there is no such layer; the nearest names are given.
    """
    known = {layer.name: layer.index for layer in list_layers(model)}
    if names is None:
        return list(known.values())
    numbers = {f"{prefix}{index}": index for index in known.values() for prefix in ("", "L")}
    for name in names:
        if name not in known and name not in numbers:
            # Of equally near names, those with the same number are meant.
            number = [part for part in name.split(".") if part.isdigit()]
            alike = [k for k in known if number and number[0] in k.split(".")]
            near = dict.fromkeys([*alike, *difflib.get_close_matches(name, known, n=3, cutoff=0.0)])
            raise ValueError(f"--layers {name}: no MLP of this model; the nearest of its {len(known)} are "
                             f"{', '.join(list(near)[:3])}")  # fmt: skip
    if not names:
        raise ValueError("--layers is empty; leave it out to take all layers")
    return list(dict.fromkeys((known | numbers)[name] for name in names))


def adapter_of_mlp(mlp: nn.Module) -> Adapter:
    for adapter in dict.fromkeys(ADAPTERS.values()):
        if all(part is None or hasattr(mlp, part) for part in (adapter.up, adapter.down, adapter.act, adapter.gate)):
            return adapter
    raise ValueError(f"{type(mlp).__name__} is no known MLP; the adapters are {', '.join(ADAPTERS)}.")


def _out_in(layer: nn.Linear | Conv1D) -> Tensor:
    """Weight [out, in] of a linear layer; GPT-2's Conv1D stores it as [in, out]."""
    return layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()


def _bias(layer: nn.Linear | Conv1D | None) -> Tensor | None:
    return None if layer is None or layer.bias is None else layer.bias.detach()


def read_mlp(mlp: nn.Module) -> MLPWeights:
    """Neuron-major weights of a dense MLP (views of its parameters) or of a routed one (copies, in the dense order)."""
    if isinstance(mlp, RoutedMLP):
        order = mlp.permutation.argsort()
        rows = {n: getattr(mlp, n) for n in ("W_in", "W_out", "b_in", "W_gate", "b_gate")}
        rows = {n: None if w is None else w.detach()[order] for n, w in rows.items()}
        return MLPWeights(**rows, b_out=None if mlp.b_out is None else mlp.b_out.detach(), activation=mlp.activation)
    adapter = adapter_of_mlp(mlp)
    up, down, act = getattr(mlp, adapter.up), getattr(mlp, adapter.down), getattr(mlp, adapter.act)
    gate = getattr(mlp, adapter.gate) if adapter.gate else None
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


@torch.no_grad()
def write_mlp(mlp: nn.Module, weights: MLPWeights) -> None:
    """Copy neuron-major weights into a dense MLP: the inverse of :func:`read_mlp`."""
    own = read_mlp(mlp)
    for name, target, source in zip(own._fields[:-1], own[:-1], weights[:-1], strict=True):
        given, wanted = (None if w is None else tuple(w.shape) for w in (source, target))
        if given != wanted:
            raise ValueError(f"`{name}` has shape {given}; this MLP's is {wanted}.")
        if target is not None and source is not None:
            target.copy_(source)


def dropout_of(mlp: nn.Module) -> float:
    """Dropout on a dense MLP's output: GPT-2 and GPT-Neo have it, the others do not."""
    dropout = getattr(mlp, "dropout", None)
    return dropout.p if isinstance(dropout, nn.Dropout) else 0.0


def neurons(weights: MLPWeights, x: Tensor) -> Tensor:
    """Activations [n, f] of an MLP's neurons, the input of the down-projection, at inputs x [n, d]."""
    act = ACTIVATIONS[weights.activation]
    up = nn.functional.linear(x, weights.W_in, weights.b_in)
    return (
        up.mul_(act(nn.functional.linear(x, weights.W_gate, weights.b_gate))) if weights.W_gate is not None else act(up)
    )
