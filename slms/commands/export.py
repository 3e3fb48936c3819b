"""`eval.py export`: a routed model, or the coders of a run, in the formats of other programs."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.commands.export_coders import circuit_tracer, neuronpedia
from slms.commands.subject import (
    Subject,
    open_model,
    run_base,
    run_text,
    short_name,
    text_options,
    with_text,
)
from slms.files import make_new, write_atomic
from slms.measure.export import ARGMAX, PERPLEXITY, Comparison, compare_export
from slms.measure.gguf import GGUFComparison, as_experts, export_gguf
from slms.models.base import Base
from slms.models.card import CARD
from slms.models.convert import check_tokens
from slms.models.io import quiet_transformers, repair_generation
from slms.models.source import looks_like_path
from slms.models.stock import ARCHITECTURES, check_model
from slms.models.stock_tokenizer import write_tokenizer
from slms.models.stock_weights import write_stock
from slms.models.to_gguf import TYPES
from slms.report.export import Origin, export_card, export_lines, gguf_card, gguf_lines
from slms.report.provenance import command_line
from slms.sae.export import CONFIG


class Format(NamedTuple):
    """A format in which a run can leave."""

    write: Callable[..., str]
    """Writes the run `run` into the empty directory `new` with the text options `text`, or raises ValueError; returns
    what to print. What it leaves in `new` is moved to `--out` as a whole."""
    words: str
    """What it is, for `--help` and the guide."""
    of: str = "a model"
    """What a run must hold."""


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: str | Path,
    input_ids: Tensor,
    format: str = "mixtral",
    *,
    type: str | None = None,
    title: str | None = None,
    base: str | None = None,
    text: str = "the given tokens",
    command: str | None = None,
) -> Comparison | GGUFComparison:
    """Write a routed model to a new directory as a stock checkpoint or GGUF, kept only if it computes the same.

    Args:
        model: a routed model, or for `gguf` also a dense one; docs/leaving.md says which can be exported.
        tokenizer: is written too; `gguf` needs one.
        input_ids: token ids [b, t] on which transformers, in a process without slms, must give the same as the model;
            for `gguf` llama.cpp, where it is installed.
        format: `mixtral`, `qwen2_moe`, `qwen3_moe` or `gguf`.
        type: of the weights in a `gguf`: `f32`, the default, or `q8_0`.
        title: the title of the card; the next three are also for the card.
        base: the dense model that the routed one was made from.
        text: what the tokens are, in words.
        command: how it was made; by default by this function.

    Raises:
        ValueError: the directory exists, an argument is wrong, or the model cannot be exported; all that stands in the
            way is named.
    """
    if format not in (*ARCHITECTURES, "gguf"):
        raise ValueError(f"`format` is {format!r}; it must be one of {', '.join(ARCHITECTURES)}, gguf")
    if type is not None and format != "gguf":
        raise ValueError(f"`type` is {type!r}; only the format gguf has types")
    if type not in (None, *TYPES):
        raise ValueError(f"`type` is {type!r}; it must be one of {', '.join(TYPES)}")
    origin = Origin(title or model.__class__.__name__, base, text, command)
    with make_new(directory) as new:
        if format != "gguf":
            check_model(model, format)
        ids = _token_ids(input_ids, model)
        if format == "gguf":
            return _write_gguf(new, model, _mixture(model), tokenizer, ids, type or "f32", origin)
        return _write(new, model, tokenizer, ids, format, origin)


def _token_ids(input_ids: Tensor, model: PreTrainedModel) -> Tensor:
    """Return token ids as int64 [b, t], or raise ValueError unless the model can predict the next of some."""
    ids = torch.as_tensor(input_ids)
    check_tokens(ids, model, "input_ids")
    if ids.shape[1] < 2:
        raise ValueError("`input_ids` has blocks of 1 token; perplexity needs a next one, so at least 2.")
    return ids.long()


def _write(
    new: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    input_ids: Tensor,
    format: str,
    origin: Origin,
) -> Comparison:
    """Write checkpoint, tokenizer, generation configuration and card into `new`, and compare."""
    write_stock(model, format, new)
    repair_generation(model)
    with quiet_transformers():
        if tokenizer is not None:
            write_tokenizer(tokenizer, new)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(new)
    found = compare_export(model.eval(), new, input_ids)
    if not found.equal:
        lines = export_lines(found).replace("\n", "; ")
        dtype = str(model.dtype).removeprefix("torch.")
        hint = f"; in {dtype} rounding alone can do this: give slms.export_model model.float()"
        raise ValueError(
            f"the export is not kept, since it computes something else: {lines}; it must be within {PERPLEXITY:g} and "
            f"on at least {ARGMAX:.1%}{'' if model.dtype == torch.float32 else hint}"
        )
    write_atomic(new / CARD, export_card(model, format, found, origin))
    return found


def _write_gguf(
    new: Path,
    model: PreTrainedModel,
    mixture: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    input_ids: Tensor,
    type: str,
    origin: Origin,
) -> GGUFComparison:
    """Write one GGUF file and its card into `new`, and compare; `mixture` is what `_mixture` made of the model."""
    if tokenizer is None:
        raise ValueError("`tokenizer` is None; a GGUF file holds the tokenizer too")
    file = f"model-{type}.gguf"
    found = export_gguf(mixture, tokenizer, new / file, input_ids, type)
    write_atomic(new / CARD, gguf_card(model, file, type, found, origin))
    return found


def _mixture(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model as GGUF holds it: in fp32, and a routed one as the mixture of experts that it is."""
    return as_experts(model if model.dtype == torch.float32 else copy.deepcopy(model).float())


def _stock(format: str, run: str, new: Path, text: dict[str, Any]) -> str:
    """Write a run as a stock checkpoint."""
    opened = open_model(run, "export")
    check_model(opened.model, format)
    subject, ids, origin = _prepared(run, opened, text)
    return export_lines(_write(new, subject.model, subject.tokenizer, ids, format, origin))


def _gguf(run: str, new: Path, text: dict[str, Any], type: str = "f32") -> str:
    """Write a dense model, or a routed one as the mixture of experts that it is, as one GGUF file."""
    opened = open_model(run, "export")
    mixture = _mixture(opened.model)
    subject, ids, origin = _prepared(run, opened, text)
    return gguf_lines(_write_gguf(new, subject.model, mixture, subject.tokenizer, ids, type, origin))


def _prepared(run: str, opened: Base, text: dict[str, Any]) -> tuple[Subject, Tensor, Origin]:
    """Read the text [b, t] on which an export is compared, and what its card says."""
    subject = with_text(run, opened, run_text(run), **text | {"n_tokens": text.get("n_tokens") or 4096})
    started = run_base(run)
    if started is not None:
        base = started.name or (started.hub if started.source == "hub" else started.embedded)
    else:
        base = None if looks_like_path(run) else run
    origin = Origin(short_name(run), base, subject.source, command_line())
    return subject, torch.as_tensor(subject.blocks.input_ids, dtype=torch.long), origin


FORMATS = {
    "mixtral": Format(partial(_stock, "mixtral"), "Llama or Mistral, all MLPs routed, no shared pathways"),
    "qwen2_moe": Format(partial(_stock, "qwen2_moe"), "Llama, Mistral or Qwen2, with dense layers or shared pathways"),
    "qwen3_moe": Format(partial(_stock, "qwen3_moe"), "Qwen3, with dense layers"),
    "neuronpedia": Format(neuronpedia, "the features of every coder of a run, for Neuronpedia's importer", "coders"),
    "circuit_tracer": Format(
        circuit_tracer, "the transcoders of a run, one for each layer's MLP, for circuit-tracer", "coders"
    ),
    "gguf": Format(_gguf, "llama.cpp's file: what leaves as mixtral, Qwen3 with every layer routed, or a dense model"),
}


def check_holds(run: str, format: str) -> None:
    """Raise ValueError, naming the formats that fit, if a run holds a model in place of coders or the reverse."""
    path, wanted = Path(run), FORMATS[format].of
    model = (path / "model").is_dir() or (path / "config.json").is_file()
    coders = any(any(path.glob(f"{place}{CONFIG}")) for place in ("", "*/", "saes/*/"))
    if model != coders and wanted != (held := "a model" if model else "coders"):
        fit = [name for name, row in FORMATS.items() if row.of == held]
        raise ValueError(f"--format {format}: {run} holds {held}, not {wanted}; --format {' or '.join(fit)} fits")


def export(
    run: str,
    format: Literal[*FORMATS],  # type: ignore[valid-type]  # names of a table
    out: str,
    n_tokens: int | None = None,
    type: Literal["f32", "q8_0"] | None = None,
    **text,
) -> None:
    """Write a routed model as a checkpoint of transformers, as GGUF, or a run's coders for other tools.

    docs/leaving.md says what can be exported, and how other programs open it. A model's checkpoint is kept only if it
    computes the same without slms.

    Args:
        run: a run directory, a model directory or a Hugging Face id; of coders a run, a directory that holds some, or
            for circuit_tracer several (RUN,RUN).
        format: the architecture or format that it becomes; docs/leaving.md has the tables.
        out: a new directory.
        n_tokens: tokens on which a checkpoint must give the same as the model (by default 4096), or on which features
            are measured (by default as many as the run validated on).
        type: of the weights in a `gguf`: f32, or q8_0 (one byte each); by default f32.
    """
    if type is not None and format != "gguf":
        raise ValueError(f"--type {type}: only --format gguf has types")
    for one in run.split(","):
        check_holds(one, format)
    options = {} if type is None else {"type": type}
    with make_new(out) as new:
        print(FORMATS[format].write(run=run, new=new, text=text_options(n_tokens=n_tokens, **text), **options))
    print(f"written to {out}")
