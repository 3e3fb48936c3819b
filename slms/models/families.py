"""The supported model families, one row each: transformers' classes, and the names of the parts of an architecture.

To add a family that is built like one of those below, add one line.
"""

from functools import partial
from typing import NamedTuple


class Family(NamedTuple):
    """The names of one architecture's parts, as transformers spells them."""

    config: str
    """Configuration class."""
    model: str
    """Causal language model class."""
    layers: str
    """Path of the list of layers from the causal language model."""
    up: str
    """Up-projection, within the MLP."""
    down: str
    """Down-projection."""
    gate: str | None = None
    """Projection whose output a gated MLP activates; None in a two-matrix MLP."""
    act: str = "act"
    """Activation function."""
    mlp: str = "mlp"
    """MLP, within a layer."""
    attention: str = "self_attn"
    """Path of the attention, which holds the projections, within a layer."""
    out: str = "o_proj"
    """Output projection, within the attention."""


class LayerInfo(NamedTuple):
    """One MLP of a model."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody looks for in a layer
    name: str
    """Module path, as in ``model.get_submodule``."""
    d_model: int
    d_ff: int
    activation: str
    """The activation's name in transformers."""
    gated: bool


_gpt = partial(Family, layers="transformer.h", up="c_fc", down="c_proj")
_neox = partial(
    Family, layers="gpt_neox.layers", up="dense_h_to_4h", down="dense_4h_to_h", attention="attention", out="dense"
)
_gated = partial(Family, layers="model.layers", up="up_proj", down="down_proj", gate="gate_proj", act="act_fn")

FAMILIES: dict[str, Family] = {
    "gpt_neo": _gpt("GPTNeoConfig", "GPTNeoForCausalLM", attention="attn.attention", out="out_proj"),
    "gpt2": _gpt("GPT2Config", "GPT2LMHeadModel", attention="attn", out="c_proj"),
    "gpt_neox": _neox("GPTNeoXConfig", "GPTNeoXForCausalLM"),
    "llama": _gated("LlamaConfig", "LlamaForCausalLM"),
    "mistral": _gated("MistralConfig", "MistralForCausalLM"),
    "qwen2": _gated("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": _gated("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma": _gated("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": _gated("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": _gated("Gemma3TextConfig", "Gemma3ForCausalLM"),
}
"""By transformers' ``model_type``; a routed model's is the same with ``routed_`` before it, a cut model's with
``cut_``."""

VARIANTS = ("routed", "cut")


def dense_type(model_type: str) -> str:
    """Return the ``model_type`` of the dense model that a routed or cut one was made from.

    >>> dense_type("routed_gpt_neo"), dense_type("cut_llama"), dense_type("gpt2")
    ('gpt_neo', 'llama', 'gpt2')
    """
    kind, _, rest = model_type.partition("_")
    return rest if kind in VARIANTS else model_type


def family_name(model_type: str) -> str:
    """Return the family of any ``model_type``; raise ValueError, naming the families, if it has none."""
    name = dense_type(model_type)
    if name not in FAMILIES:
        raise ValueError(f"model type `{name}` has no known MLP; the families are {', '.join(FAMILIES)}.")
    return name
