"""Opens what a command measures: a model (or a run's model) and the text to measure it on."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.commands.arguments import LEAST
from slms.data.corpora import EMBEDDED, CorpusConfig, absolute_name, check_unchanged, read_from
from slms.data.text import Blocks, BlockSpec, load_blocks
from slms.measure.journal import Journal, identity
from slms.models.base import Base, open_model
from slms.models.source import BaseConfig, looks_like_path
from slms.report.artifacts import own_directory

DEFAULTS = {"corpus": EMBEDDED, "validation": None, "text_field": "text", "block_size": 256, "n_tokens": 131_072}


class Subject(NamedTuple):
    """A model, its tokenizer and the blocks of text to measure it on."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    text: dict
    """the corpus, validation, split, text_field, block_size and n_tokens that the blocks were made from"""

    @property
    def source(self) -> str:
        """The file, or the corpus and its split, in words."""
        return text_source(self.text)


def open_subject(model: str, **text) -> Subject:
    """Load a model, and its text as blocks with labels.

    Args:
        model: a run directory, a model directory, an embedded name or a hub id.
        text: the options of `chosen_text`.

    Raises:
        ValueError: the model, corpus or split does not exist, or the run has no finished model.
    """
    own = run_text(model)
    return with_text(model, open_model(model), own, **text)


def with_text(name: str, base: Base, own: dict, **text) -> Subject:
    """Join a loaded model with its text as blocks with labels.

    Args:
        name: what results call the model.
        own: the text of its run, as `Subject.text`, or the part of it that is known.
        text: the options of `chosen_text`.

    Raises:
        ValueError: the corpus or split does not exist, or holds too little text.
    """
    settings = chosen_text(base.model, own, **text)
    spec = BlockSpec(
        corpus=settings["corpus"],
        split=settings["split"],
        validation=settings["validation"],
        text_field=settings["text_field"],
        seed=0,
        block_size=settings["block_size"],
        n_tokens=settings["n_tokens"],
        with_labels=True,
    )
    return Subject(name, *base, load_blocks(spec, base.tokenizer), settings)


def text_source(text: dict) -> str:
    """Name, in words, the file, or the corpus and its split, that `chosen_text` chose."""
    return read_from(text["corpus"], text["split"], text["validation"])


def chosen_text(
    model: PreTrainedModel,
    own: dict,
    corpus: str | None = None,
    validation: str | None = None,
    split: str = "validation",
    block_size: int | None = None,
    n_tokens: int | None = None,
) -> dict:
    """Choose the text to measure on: what you asked for, else that of the model's own run, else `DEFAULTS`.

    Args:
        corpus: `stories`, a .txt/.jsonl/.parquet file or a dataset id; by default the run's, or `stories`.
        validation: a second corpus that holds the validation split; without it, every 50th document of a file does.
        split: train, validation or test; for a file also all.
        block_size: context in tokens; by default the run's, or 256, at most the model's context.
        n_tokens: tokens to measure on; by default the run's, or 131072.

    Raises:
        ValueError: the context is longer than the model's, or a run's own text is gone or has changed.
    """
    given = {"corpus": corpus, "validation": validation, "block_size": block_size, "n_tokens": n_tokens}
    if corpus is not None:
        own = {key: value for key, value in own.items() if key not in ("corpus", "validation", "text_field", "files")}
    settings = DEFAULTS | own | {key: value for key, value in given.items() if value is not None} | {"split": split}
    settings |= {key: absolute_name(settings[key]) for key in ("corpus", "validation") if settings[key] is not None}
    known = settings.pop("files", None) or {}
    source = settings["validation"] if split != "train" and settings["validation"] else settings["corpus"]
    if source not in (absolute_name(name) for name in (corpus, validation) if name is not None):
        check_unchanged(source, known)
    limit = getattr(model.config, "max_position_embeddings", None) or settings["block_size"]
    if block_size is None and "block_size" not in own:
        settings["block_size"] = min(settings["block_size"], limit)
    for flag in ("block_size", "n_tokens"):
        if settings[flag] < LEAST[flag]:
            raise ValueError(f"--{flag} {settings[flag]}: it must be at least {LEAST[flag]}")
    if settings["block_size"] > limit:
        raise ValueError(f"--block_size {settings['block_size']}: the model's context holds at most {limit} tokens")
    return settings


def text_options(
    corpus: str | None = None,
    validation: str | None = None,
    split: str = "validation",
    block_size: int | None = None,
    n_tokens: int | None = None,
) -> dict[str, Any]:
    """Gather the options of `chosen_text`, for a command that passes them on as a whole.

    Args:
        corpus: `stories`, a .txt/.jsonl/.parquet file or a dataset id; by default the run's, or `stories`.
        validation: a second corpus that holds the validation split; without it, every 50th document of a file does.
        split: train, validation or test; for a file also all.
        block_size: context in tokens; by default the run's, or 256, at most the model's context.
        n_tokens: tokens to measure on; by default the run's, or 131072.
    """
    return dict(locals())


def results_of(subject: Subject, output_dir: str, command: str, **settings: Any) -> tuple[Path, Journal]:
    """The directory for the results of a measurement (`own_directory`), and the journal of its parts."""
    made_from = identity(subject.model, subject.blocks)
    text = f"{Path(subject.text['corpus']).stem}-{subject.text['split']}"
    directory = own_directory(output_dir, command, subject.name, text, made_from | settings)
    return directory, Journal(directory.parent / "parts", made_from)


def short_name(model: str) -> str:
    """The name of a model in tables and figures: its run's name, its directory's, or the last part of its hub id."""
    path = Path(model)
    return path.resolve().parent.name if (path / "config.yaml").is_file() else path.name or model


def public_name(model: str) -> str:
    """The name of a model for what goes elsewhere: an embedded name or hub id as it is, of a path no more than its end.

    >>> public_name("roneneldan/TinyStories-1M"), public_name("/home/me/my-llama")
    ('roneneldan/TinyStories-1M', 'my-llama')
    """
    path = Path(model)
    if path.name == "model" and (path.parent / "config.yaml").is_file():
        return short_name(str(path.parent))
    return short_name(model) if looks_like_path(model) else model


def run_base(model: str) -> BaseConfig | None:
    """The base that a run started from; None if `model` is no run directory."""
    config = Path(model) / "config.yaml"
    if not config.is_file():
        return None
    try:
        return BaseConfig(**run_section(config, "model")["base"])
    except (KeyError, TypeError):
        raise ValueError(f"{config}: not the config.yaml of a run") from None


def run_section(config: Path, name: str) -> dict:
    """A section of a run's config.yaml; raises ValueError if that has none."""
    try:
        section = yaml.safe_load(config.read_text(encoding="utf-8"))[name]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        section = None
    if not isinstance(section, dict):
        raise ValueError(f"{config}: not the config.yaml of a run")
    return section


def run_text(model: str | Path) -> dict:
    """The text that a run validated on, from its resolved config; empty if `model` is no run directory."""
    config = Path(model) / "config.yaml"
    if not config.is_file():
        return {}
    data = run_section(config, "data")
    try:
        corpus = data["corpus"]
        source = run_section(config, "model")["base"]["source"]  # where the base came from; the corpus goes with it
        text = {
            "corpus": CorpusConfig(**corpus).resolve(source),
            "validation": corpus["validation"],
            "text_field": corpus["text_field"],
            "block_size": data["block_size"],
            "n_tokens": data["val_tokens"],
            "files": corpus.get("files") or {},
        }
        names = (text["corpus"], text["validation"] or "", text["text_field"], *text["files"].keys())
        if not all(isinstance(name, str) for name in names):
            raise TypeError(names)
        return text
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{config}: not the config.yaml of a run") from None
