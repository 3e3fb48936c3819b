"""What a command measures: a model (or a run's model) and the text to measure it on."""

from pathlib import Path
from typing import NamedTuple

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.data.text import EMBEDDED, Blocks, BlockSpec, CorpusConfig, load_blocks
from slms.models.base import Base, load_base
from slms.models.source import BaseConfig

DEFAULTS = {"corpus": EMBEDDED, "validation": None, "text_field": "text", "block_size": 256, "n_tokens": 131_072}


class Subject(NamedTuple):
    """A model with the blocks to measure it on."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    text: dict
    """corpus, validation, text_field, block_size and n_tokens that the blocks were made from"""


def open_subject(model: str, split: str = "validation", **text) -> Subject:
    """Load a model and its text; what the caller leaves at None comes from the run's config, else from `DEFAULTS`.

    Nobody having said how long, blocks are no longer than the model's context.

    Args:
        model: a run directory, a model directory, an embedded name or a hub id.
        split: which split of the corpus.
        text: corpus, validation, block_size, n_tokens.

    Raises:
        ValueError: no such model, corpus or split, or a run without a finished model.
    """
    config = Path(model) / "config.yaml"
    from_run = _run_text(config) if config.is_file() else {}
    net, tokenizer = open_model(model)
    settings = {
        key: text[key] if text.get(key) is not None else from_run.get(key, default) for key, default in DEFAULTS.items()
    }
    if text.get("corpus") is not None and text.get("validation") is None:
        settings["validation"] = None
    limit = getattr(net.config, "max_position_embeddings", settings["block_size"])
    if text.get("block_size") is None and not from_run:
        settings["block_size"] = min(settings["block_size"], limit)
    if settings["block_size"] > limit:
        raise ValueError(f"--block_size {settings['block_size']}: the model's context holds at most {limit} tokens")
    spec = BlockSpec(
        settings["corpus"], split, settings["validation"], settings["text_field"], 0, settings["block_size"],
        settings["n_tokens"], with_labels=True,
    )  # fmt: skip
    return Subject(model, net, tokenizer, load_blocks(spec, tokenizer), settings)


def open_model(model: str) -> Base:
    """The model and tokenizer of a run directory, a model directory, an embedded name or a hub id.

    Raises:
        ValueError: no such model, or a run without a finished model.
    """
    path = Path(model)
    is_run = (path / "config.yaml").is_file()
    if is_run and not (path / "model").is_dir():
        raise ValueError(f"--model {model}: the run has no finished model/ directory")
    net, tokenizer = load_base(str(path / "model") if is_run else model)
    return Base(net.eval(), tokenizer)


def short_name(model: str) -> str:
    """What tables and figures call a model: a run's name, a directory's, or the last part of a hub id."""
    path = Path(model)
    return path.resolve().parent.name if (path / "config.yaml").is_file() else path.name or model


def run_base(model: str) -> BaseConfig | None:
    """The base that a run started from; None where `model` is no run directory."""
    config = Path(model) / "config.yaml"
    if not config.is_file():
        return None
    try:
        return BaseConfig(**_section(config, "model")["base"])
    except (KeyError, TypeError):
        raise ValueError(f"{config}: not the config.yaml of a run") from None


def _section(config: Path, name: str) -> dict:
    try:
        section = yaml.safe_load(config.read_text(encoding="utf-8"))[name]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        section = None
    if not isinstance(section, dict):
        raise ValueError(f"{config}: not the config.yaml of a run")
    return section


def _run_text(config: Path) -> dict:
    """The text a run validated on, from its resolved config."""
    data = _section(config, "data")
    try:
        corpus = data["corpus"]
        source = _section(config, "model")["base"]["source"]  # where the base came from; the corpus goes with it
        return {
            "corpus": CorpusConfig(**corpus).resolve(source),
            "validation": corpus["validation"],
            "text_field": corpus["text_field"],
            "block_size": data["block_size"],
            "n_tokens": data["val_tokens"],
        }
    except (KeyError, TypeError):
        raise ValueError(f"{config}: not the config.yaml of a run") from None
