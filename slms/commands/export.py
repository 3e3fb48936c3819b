"""`eval.py export`: a routed model, or the coders of a run, in the formats of other programs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.commands.export_coders import circuit_tracer, neuronpedia
from slms.commands.subject import open_model, run_base, run_text, short_name, text_options, with_text
from slms.files import make_new, write_atomic
from slms.measure.export import ARGMAX, PERPLEXITY, Comparison, compare_export
from slms.measure.gguf import as_experts, export_gguf
from slms.models.card import CARD
from slms.models.io import quiet_transformers, repair_generation
from slms.models.stock import check_model
from slms.models.stock_weights import write_stock
from slms.report.export import export_card, export_lines, gguf_lines
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
    title: str | None = None,
    base: str | None = None,
    text: str = "the given tokens",
    command: str = "slms.export_model(...)",
) -> Comparison:
    """Write a routed model to a new directory as a stock checkpoint, which is kept only if it computes the same.

    Args:
        model: a routed model; docs/leaving.md says which can be exported.
        input_ids: token ids [b, t] on which transformers, in a process without slms, must give the same as the model.
        format: `mixtral`, `qwen2_moe` or `qwen3_moe`.
        title: the title of the card; the next three are also for the card.
        base: the dense model that the routed one was made from.
        text: what the tokens are, in words.
        command: how it was made.

    Raises:
        ValueError: the directory exists, or the model cannot be exported; all that stands in the way is named.
    """
    with make_new(directory) as new:
        check_model(model, format)
        return _write(
            new,
            model,
            tokenizer,
            input_ids,
            format,
            title=title or type(model).__name__,
            base=base,
            text=text,
            command=command,
        )


def _write(
    new: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    input_ids: Tensor,
    format: str,
    **card: Any,
) -> Comparison:
    """Write checkpoint, tokenizer, generation configuration and card into `new`, and compare."""
    write_stock(model, format, new)
    repair_generation(model)
    with quiet_transformers():
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(new)
    found = compare_export(model.eval(), new, input_ids)
    if not found.equal:
        lines = export_lines(found).replace("\n", "; ")
        raise ValueError(
            f"the export is not kept, since it computes something else: {lines}; it must be within {PERPLEXITY:g} and "
            f"on at least {ARGMAX:.1%}"
        )
    write_atomic(new / CARD, export_card(model, format, found, **card))
    return found


def _stock(format: str, run: str, new: Path, text: dict[str, Any]) -> str:
    """Write a run as a stock checkpoint."""
    opened, text = open_model(run, "export"), text | {"n_tokens": text.get("n_tokens") or 4096}
    check_model(opened.model, format)
    subject = with_text(run, opened, run_text(run), **text)
    started = run_base(run)
    base = None if started is None else started.name or (started.hub if started.source == "hub" else started.embedded)
    card = {"title": short_name(run), "base": base, "text": subject.source, "command": command_line()}
    ids = torch.as_tensor(subject.blocks.input_ids, dtype=torch.long)
    return export_lines(_write(new, subject.model, subject.tokenizer, ids, format, **card))


def _gguf(run: str, new: Path, text: dict[str, Any], type: str = "f32") -> str:
    """Write a dense model, or a routed one as the mixture of experts that it is, as one GGUF file."""
    opened, text = open_model(run, "export"), text | {"n_tokens": text.get("n_tokens") or 4096}
    model = as_experts(opened.model)
    subject = with_text(run, opened, run_text(run), **text)
    ids = torch.as_tensor(subject.blocks.input_ids, dtype=torch.long)
    return gguf_lines(export_gguf(model, subject.tokenizer, new / f"model-{type}.gguf", ids, type))


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
