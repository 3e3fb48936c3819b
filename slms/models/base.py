"""Opens base models by name, pretrained or with random weights."""

from __future__ import annotations

import math
from itertools import cycle, islice
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from slms.models.directory import check_directory
from slms.models.io import Base, read_model, read_tokenizer
from slms.models.routed import routed_modules
from slms.models.source import BaseConfig, Resolved, as_base, fetch, fetch_tokenizer, resolve
from slms.models.speedups import prepare

__all__ = ["Base", "BaseConfig", "Resolved", "build_meta", "init_base", "load_base", "open_model", "resolve"]


def load_base(
    base: BaseConfig | str | Path,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    source: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Base:
    """Load a dense (or routed) language model and its tokenizer by name, directory or configuration.

    >>> model, tokenizer = load_base("stories-1m")                      # doctest: +SKIP

    tokenizer: a tokenizer, or the name of one; by default the base's own. source: `auto`, `hub`, `embedded` or `local`.
    dtype: the dtype of the weights, by default fp32, which training needs, whatever is stored. Raises a one-line
    ValueError or OSError if the base cannot be loaded.
    """
    base = as_base(base)
    changes = {"source": source, "tokenizer": tokenizer if isinstance(tokenizer, str) else None}
    base = BaseConfig(**{**vars(base), **{k: v for k, v in changes.items() if v is not None}})
    resolved = resolve(base)
    path = _place(base, resolved)
    pretrained = base.init == "pretrained"
    model = read_model(path, dtype) if pretrained else _random(shaped(_config(path), base), base.seed or 0, dtype)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return Base(model, tokenizer)
    stand_in = resolved.kind == "embedded" and base.hub is not None
    apart = None if stand_in else base.tokenizer  # a stand-in brings its own tokenizer
    found = read_tokenizer(fetch_tokenizer(apart) if apart else path)
    if found is None:
        raise ValueError(
            f"{apart or path} has no tokenizer; name one with --model.base.tokenizer NAME (in YAML "
            "`model: {base: {tokenizer: NAME}}`, in Python `tokenizer=`)"
        )
    return Base(model, _with_special_tokens(found, model.config))


def open_model(model: str, option: str = "--model") -> Base:
    """Load the model and tokenizer of a run directory, a model directory, an embedded name or a hub id.

    Raises:
        ValueError: the model does not exist, or the run has no finished model; `option` is what named it.
    """
    path = Path(model)
    is_run = (path / "config.yaml").is_file()
    if is_run and not (path / "model").is_dir():
        raise ValueError(f"{option} {model}: the run has no finished model/ directory")
    net, tokenizer = load_base(str(path / "model") if is_run else model)
    return Base(net.eval(), tokenizer)


def init_base(base: BaseConfig | str | Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a base's architecture with weights drawn by its own initialisation from a seed; no weights are read."""
    base = BaseConfig(**{**vars(as_base(base)), "init": "random", "seed": seed})
    return _random(shaped(_config(_place(base)), base), seed, dtype)


def random_twin(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Copy `model` with weights, routers included, drawn by its own initialisation from a seed, as a null model.

    Everything else stays the model's own: dtype, device, the modules that `prepare` substitutes, and the current rule,
    k and gate ramp of its routed modules, which training may have changed from the configuration. A rule that training
    holds to a mean of k pathways is `top_k` in the twin, because its bound says nothing about random scores.
    """
    twin = _random(model.config, seed, model.dtype).to(model.device)  # type: ignore[arg-type]  # of a decorated method
    for place, module in routed_modules(model).items():
        other = routed_modules(twin)[place]
        config = module.router.config
        fixed = config.with_fixed_k()
        if fixed is not config:
            other.router.gate = str(fixed.gate)
        other.router.config = fixed
        other.k = module.k
        if module.router.ramp is not None:
            assert other.router.ramp is not None  # both have the gate of one configuration
            other.router.ramp.copy_(module.router.ramp)
    return twin


def build_meta(base: BaseConfig | str | Path) -> PreTrainedModel:
    """Build a base's modules on the `meta` device, with their shapes but no memory for weights."""
    config = _config(_place(BaseConfig(**{**vars(as_base(base)), "init": "random"})))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def shaped(config: PreTrainedConfig, base: BaseConfig) -> PreTrainedConfig:
    """Change a configuration to the shape that the base's overrides ask for; d_ff keeps its ratio to d_model."""
    requested = {"hidden_size": base.d_model, "num_hidden_layers": base.n_layers, "num_attention_heads": base.n_heads}
    requested = {name: value for name, value in {**requested, "vocab_size": base.vocab}.items() if value is not None}
    if not requested:
        return config
    old = {name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    new = {**old, **requested}
    if new["hidden_size"] % new["num_attention_heads"]:
        raise ValueError(
            f"`base.d_model` is {new['hidden_size']}; it must be a multiple of n_heads ({new['num_attention_heads']})."
        )
    values = config.to_dict()
    values |= {config.attribute_map.get(name, name): value for name, value in requested.items()}
    if values.get("intermediate_size") is not None:
        values["intermediate_size"] = max(1, values["intermediate_size"] * new["hidden_size"] // old["hidden_size"])
    if values.get("head_dim") is not None:
        values["head_dim"] = new["hidden_size"] // new["num_attention_heads"]
    if values.get("num_key_value_heads") is not None:
        values["num_key_value_heads"] = math.gcd(values["num_key_value_heads"], new["num_attention_heads"])
    layers = new["num_hidden_layers"]
    for name in ("layer_types", "attention_layers"):
        if values.get(name) is not None:
            values[name] = list(islice(cycle(values[name]), layers))
    if "attention_types" in values:  # GPT-Neo's source of attention_layers: a repeated pattern
        values["attention_types"] = [[values["attention_layers"], 1]]
    return type(config).from_dict(values)


def _place(base: BaseConfig, resolved: Resolved | None = None) -> Path:
    path = fetch(resolved or resolve(base), base.revision, weights=base.init == "pretrained")
    check_directory(path, weights=base.init == "pretrained")
    return path


def _config(path: Path) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _random(config: PreTrainedConfig, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return prepare(AutoModelForCausalLM.from_config(config, dtype=dtype)).eval()


def _with_special_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Set special tokens from the model's configuration, because a bare tokenizer.json names none."""
    for name in ("bos_token", "eos_token"):
        token = getattr(config, f"{name}_id")
        if getattr(tokenizer, name) is None and isinstance(token, int):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
    return tokenizer
