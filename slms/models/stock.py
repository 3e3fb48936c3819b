"""Which routed models are stock mixtures of experts, and what stands in the way of the others.

`slms.models.stock_weights` writes them; its head says why they compute the same.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel

from slms.models.families import family_name
from slms.models.routed import routed_modules
from slms.routing import PathwayRouter, RoutingConfig
from slms.routing.stock import Obstacle, listed, routing_obstacles

OWN = "save_model's format keeps it, which transformers reads once slms is imported"


class Stock(NamedTuple):
    """One architecture of transformers that routed models can become."""

    config: str
    """Configuration class."""
    model: str
    """Causal language model class."""
    families: tuple[str, ...]
    """The families of dense models whose attention, norms and head it has."""
    block: str
    """The MLP's name within a layer, in checkpoints."""
    gate: str
    up: str
    down: str
    """The matrices of an expert, in checkpoints."""
    mixed: bool
    """Whether layers may stay dense."""
    shared: bool
    """Whether it has a shared expert."""
    windowed: bool
    """Whether its attention may have a sliding window, in vLLM too."""


ARCHITECTURES = {
    "mixtral": Stock(
        *("MixtralConfig", "MixtralForCausalLM", ("llama", "mistral")),
        *("block_sparse_moe", "w1", "w3", "w2"),
        mixed=False,
        shared=False,
        windowed=True,
    ),
    "qwen2_moe": Stock(
        *("Qwen2MoeConfig", "Qwen2MoeForCausalLM", ("llama", "mistral", "qwen2")),
        *("mlp", "gate_proj", "up_proj", "down_proj"),
        mixed=True,
        shared=True,
        windowed=False,
    ),
    "qwen3_moe": Stock(
        *("Qwen3MoeConfig", "Qwen3MoeForCausalLM", ("qwen3",)),
        *("mlp", "gate_proj", "up_proj", "down_proj"),
        mixed=True,
        shared=False,
        windowed=False,
    ),
}
"""By transformers' `model_type`, which is also the name in `eval.py export --format`."""


def base_obstacles(config: PreTrainedConfig, name: str) -> list[Obstacle]:
    """Return what a dense (or routed) model's configuration has that the architecture `name` lacks."""
    family, stock = family_name(config.model_type), ARCHITECTURES[name]
    if family not in stock.families:
        fits = [other for other, row in ARCHITECTURES.items() if family in row.families]
        return [Obstacle(f"it is a {family}", f"--format {' or '.join(fits)}" if fits else OWN)]
    found = []
    if config.hidden_act not in ("silu", "swish"):
        found.append(Obstacle(f"the base's activation is {config.hidden_act}, and that of {name} silu", OWN))
    for option in ("attention_bias", "mlp_bias"):
        if getattr(config, option, False):
            found.append(Obstacle(f"the base has `{option}`, and {name} does not", OWN))
    heads, size = config.num_attention_heads, getattr(config, "head_dim", None)
    if name == "qwen2_moe" and size is not None and size * heads != config.hidden_size:
        found.append(
            Obstacle(f"the base's {heads} heads of size {size} are no {config.hidden_size}", "--format mixtral")
        )
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if not stock.windowed and window is not None and window < config.max_position_embeddings:
        lift = "--format mixtral" if family == "mistral" else OWN
        found.append(Obstacle(f"the base attends to {window} tokens, and {name} to all", lift))
    return found


def layout_obstacles(config: PreTrainedConfig, routing: RoutingConfig, name: str, gguf: bool = False) -> list[Obstacle]:
    """Return what stands in the way of routing this base so that it becomes the architecture `name`.

    gguf: whether llama.cpp is to run it, which routes every layer and computes no qwen2_moe as transformers does.
    """
    stock, found = ARCHITECTURES[name], routing_obstacles(routing)
    d_ff, p = getattr(config, "intermediate_size", 0), routing.n_pathways
    if d_ff % p:
        fits = [n for n in range(max(2, routing.k), d_ff + 1) if d_ff % n == 0]
        words = ", ".join(map(str, sorted(sorted(fits, key=lambda n: abs(n - p))[:8])))
        found.append(Obstacle(f"`routing.n_pathways` is {p} and d_ff {d_ff}", f"--model.routing.n_pathways={words}"))
    elsewhere = ", or --format qwen2_moe" if name == "mixtral" and not gguf else ""
    layers = config.num_hidden_layers
    if (gguf or not stock.mixed) and len(routing.routed_layers(layers)) < layers:
        every = "--model.routing.every_n_layers=1 --model.routing.first_layer=0 --model.routing.last_layer=-1"
        every = every if routing.layers is None else f"--model.routing.layers=null {every}"
        left = sorted(set(range(layers)) - set(routing.routed_layers(layers)))
        dense = f"layers {', '.join(map(str, left))} are dense" if len(left) > 1 else f"layer {left[0]} is dense"
        found.append(Obstacle(dense, every + elsewhere))
    if not stock.shared and routing.n_shared:
        found.append(Obstacle(f"`routing.n_shared` is {routing.n_shared}", f"--model.routing.n_shared=0{elsewhere}"))
    return found


def check_base(config: PreTrainedConfig, routing: RoutingConfig, bias_rate: float = 0.0) -> None:
    """Raise ValueError, naming all in the way, if a base routed so could become no architecture of `ARCHITECTURES`."""
    family = family_name(config.model_type)
    tried = [
        (base_obstacles(config, name), layout_obstacles(config, routing, name))
        for name, row in ARCHITECTURES.items()
        if family in row.families
    ]
    families = sorted({family for row in ARCHITECTURES.values() for family in row.families})
    none = Obstacle(
        f"a {family} has no stock mixture of experts, only {', '.join(families)} have one",
        "--model.routing.stock=false",
    )
    # What the base has, no flag lifts; so the architecture that fits the base best is the one to route for.
    of_base, of_layout = min(tried, key=lambda both: (len(both[0]), len(both[1])), default=([none], []))
    found = of_base + of_layout
    if bias_rate:
        found = [*found, _biased(f"`balance.bias_rate` is {bias_rate:g}")]
    if found:
        raise ValueError(f"`routing.stock` is true, but {listed(found)}.")


def _biased(what: str) -> Obstacle:
    return Obstacle(f"{what}, and no stock router chooses by a bias", "--model.balance.bias_rate=0")


def check_model(model: PreTrainedModel, name: str, gguf: bool = False) -> None:
    """Raise ValueError, naming all that stands in the way, unless a routed model is the architecture `name`.

    gguf: whether it is to become a GGUF file, so that what lifts an obstacle must leave it one.
    """
    mlps = routed_modules(model)
    if not mlps:
        raise ValueError(f"{type(model).__name__} is not routed; as it was saved, it is a stock checkpoint already.")
    found = base_obstacles(model.config, name)
    first = next(iter(mlps.values()))
    if family_name(model.config.model_type) in ARCHITECTURES[name].families:
        found += layout_obstacles(model.config, first.config, name, gguf)
    elif found[0].lift != OWN:  # another format would do, but for these
        found += routing_obstacles(first.config)
    if len({mlp.k for mlp in mlps.values()}) > 1:
        found.append(Obstacle("k differs between layers", "slms.models.routed.set_k"))
    routers = [mlp.router for mlp in mlps.values() if isinstance(mlp.router, PathwayRouter)]
    if any(router.selection_bias.any() for router in routers):
        found.append(_biased("its routers have a selection bias"))
    if found:
        no_form = "has no GGUF form, since it " if gguf else ""
        raise ValueError(f"this model {no_form}is no {name}: {listed(found)}.")
