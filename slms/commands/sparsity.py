"""`eval.py sparsity`, also installed as the console script `sparsity`: activation sparsity by layer."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from slms.cli import one_line_errors
from slms.commands import run
from slms.commands.arguments import published
from slms.commands.subject import chosen_text, open_model, run_text, text_source
from slms.data.corpora import EMBEDDED, documents
from slms.data.probe_tasks import MANIFEST, Item, Task, read_tasks
from slms.data.prompts import prompt_blocks
from slms.data.text import say_shortage
from slms.measure.journal import Journal, digest, identity
from slms.measure.rows import MODEL, Row
from slms.measure.sparsity import STEPS, measure_sparsity
from slms.metrics.functional import ActivationSparsity
from slms.models.anatomy import list_layers, named_layers
from slms.models.place import place_name
from slms.progress import Progress
from slms.report.artifacts import own_directory, write_csv, write_json
from slms.report.provenance import command_line
from slms.report.tables import cell, text_table

DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DOCUMENTS, MOST_TOKENS = 4, 2048  # documents read by default, as in the prototype; most tokens of one document
MEASURES = [f"{name}{end}" for name in ActivationSparsity._fields for end in ("", "_low", "_high")]
COLUMNS = ["layer", "frac", "pr", "kept", *MEASURES, "frac_neurons", "pr_neurons", "tokens"]


@published(dataset="corpus", max_tokens="block_size")
def sparsity(
    model: str,
    prompt: str | None = None,
    num_docs: int | None = None,
    n_tokens: int | None = None,
    block_size: int | None = None,
    threshold: float = 0.0,
    output_dir: str = "artifacts",
    layers: list[str] | None = None,
    dtype: str = "auto",
    probe_manifest: str | None = None,
    task_id: list[str] | None = None,
    tolerance: float = 0.01,
    batch_size: int = 8,
    **text,
) -> None:
    """Activation sparsity of each MLP: shares of its neurons, between 0 and 1, with 95 % intervals over documents.

    kept: the smallest share of neurons that raises perplexity by at most the tolerance. gini, hoyer: 0 if all neurons
    contribute alike, 1 if only one does. top_mass: the share of neurons that holds .9 of a token's contributions.
    participation: (Σe)²/(N Σe²). zeros: the share of exact zeros. frac and pr are the prototype's, of the MLP's output:
    the share above the threshold, and (Σy⁺)²/Σ(y⁺)² pooled over tokens, which grows with their number.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        prompt: measure on this text, read NUM_DOCS times as in the prototype (pr depends on it).
        num_docs: documents to read; 4 if you do not give N_TOKENS either; −1 reads a whole split.
        n_tokens: tokens to read, in whole documents; reading ends earlier if NUM_DOCS is reached.
        block_size: tokens to read of each document, by default 2048 or the model's context. Published scripts call it
            `--max_tokens`, and the corpus `--dataset`; both also work.
        threshold: `frac` counts the values above it.
        output_dir: sparsity.csv and sparsity.json go to OUTPUT_DIR/sparsity/NAME/TEXT/.
        layers: layer names such as gpt_neox.layers.10.mlp, or numbers; by default all layers.
        dtype: auto (as stored), float32, float16 or bfloat16.
        probe_manifest: measure on each task of this manifest instead; if you give only `task_id`, the project's own.
        task_id: tasks of the manifest; by default all.
        tolerance: how much perplexity may rise for `kept`, as a share.
        batch_size: documents in one forward pass.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: it must be one of {', '.join(DTYPES)}")
    if not tolerance > 0:
        raise ValueError(f"--tolerance {tolerance}: it must be above 0")
    if num_docs is not None and num_docs < 1 and num_docs != -1:
        raise ValueError(f"--num_docs {num_docs}: it must be at least 1, or -1 for all")
    by_task = probe_manifest is not None or task_id is not None
    tasks = read_tasks(probe_manifest or MANIFEST, task_id) if by_task else []
    net, tokenizer = open_model(model)
    net = net if DTYPES[dtype] is None else net.to(DTYPES[dtype])  # type: ignore[arg-type]  # decorated
    chosen = named_layers(net, layers)
    known = {layer.index: layer.name for layer in list_layers(net)}
    names = {i: known[i] for i in chosen}
    context = getattr(net.config, "max_position_embeddings", None) or MOST_TOKENS
    own = run_text(model) | ({"files": {}} if by_task or prompt else {})  # whose text is then not read
    read = chosen_text(net, own, block_size=block_size or min(MOST_TOKENS, context), **text)
    if not by_task:
        tasks = [_text(prompt, read, num_docs, n_tokens, tokenizer)]
    rows: dict[str, list[Row]] = {}
    texts: dict[str, int] = {}
    made_from = identity(net)
    options = [threshold, tolerance, batch_size, chosen, dtype, digest({"texts": tasks}), read["block_size"]]
    source = Path(str(probe_manifest or MANIFEST) if by_task else "prompt" if prompt else read["corpus"]).stem
    directory = own_directory(output_dir, "sparsity", model, source, made_from | {"options": options})
    with Progress("sparsity", len(tasks) * (STEPS + 2)) as steps:
        for task in tasks:
            blocks = prompt_blocks([task], tokenizer, context, read["block_size"])
            journal = Journal(directory.parent / "parts", made_from | identity(net, blocks))
            told = partial(steps.update, 1)
            found = measure_sparsity(net, blocks, chosen, threshold, tolerance, batch_size, told, journal)
            rows[task.task_id], texts[task.task_id] = found.rows(), len(blocks.input_ids)
            _print(task.task_id if by_task else "", rows[task.task_id], names, tolerance)
    first = 0 if by_task else 1  # the published columns have no `task_id`
    lines = [[name, *line][first:] for name, own in rows.items() for line in _lines(own, names)]
    write_csv(directory / "sparsity.csv", ["task_id", *COLUMNS][first:], lines)
    content = {
        "model": model,
        "corpus": None if by_task or prompt else read["corpus"],
        "split": read["split"],
        "dtype": dtype,
        "threshold": threshold,
        "tolerance": tolerance,
        "block_size": read["block_size"],
        "num_docs": num_docs,
        "n_tokens": n_tokens,
        "command": command_line(),
        "texts": texts,
        "rows": [{"task_id": name} | asdict(row) for name, own in rows.items() for row in own],
    }
    write_json(directory / "sparsity.json", content)
    print(f"written to {directory}")


def main() -> None:
    """Run the console script `sparsity`."""
    with one_line_errors("sparsity"):
        run("sparsity", sys.argv[1:], "sparsity")


def _text(
    prompt: str | None, read: dict, num_docs: int | None, n_tokens: int | None, tokenizer: PreTrainedTokenizerBase
) -> Task:
    """The prompt or corpus as one task: documents, up to `num_docs` of them or `n_tokens` of their tokens."""
    if num_docs is None and n_tokens is None:
        num_docs = DOCUMENTS
    if prompt is not None:
        return Task("prompt", "", "", (Item(prompt),) * max(num_docs or DOCUMENTS, 1))
    corpus, split = read["corpus"], read["split"]
    if num_docs == -1 and n_tokens is None and corpus == EMBEDDED:
        raise ValueError("--num_docs -1: the embedded stories have no end; name a number, or --n_tokens")
    found = documents(corpus, split, validation=read["validation"], text_field=read["text_field"])
    items: list[Item] = []
    total = 0
    for document in islice(found, None if num_docs in (None, -1) else num_docs):
        length = min(len(tokenizer(document.text, verbose=False)["input_ids"]), read["block_size"])
        if n_tokens is not None and items and total + length > n_tokens:
            break
        items.append(Item(document.text))
        total += length
    else:
        if num_docs not in (None, -1) and len(items) < num_docs:
            say_shortage(text_source(read), len(items), num_docs, "documents")
        elif n_tokens is not None and len(items) != num_docs and total < n_tokens:
            say_shortage(text_source(read), total, n_tokens)
    if not items:
        raise ValueError(f"--corpus {corpus}: no text in split {split!r}")
    return Task("text", "", "", tuple(items))


def _lines(rows: Sequence[Row], names: dict[int, str]) -> list[list[Any]]:
    """One of `COLUMNS` for each layer."""
    lines = []
    for i, name in names.items():
        of = {row.key[1:]: row for row in rows if row.place == place_name(i)}
        measured = [of["sparsity", family] for family in ActivationSparsity._fields]
        numbers = [of["frac", ""].value, of["pr", ""].value, of["kept", ""].value]
        numbers += [number for row in measured for number in (row.value, row.low, row.high)]
        numbers += [of["sparsity", f"{name}_legacy"].value for name in ("frac", "pr")]
        lines.append([name, *numbers, measured[0].n])
    return lines


def _print(title: str, rows: Sequence[Row], names: dict[int, str], tolerance: float) -> None:
    head = ["layer", "kept", "Gini", "Hoyer", ".9 mass", "PR/N", "zeros", "frac", "pr"]
    shown = [("kept", ""), *(("sparsity", family) for family in ActivationSparsity._fields), ("frac", ""), ("pr", "")]
    of = {row.key: cell(row) for row in rows}
    cells = [[name, *(of[place_name(i), *key] for key in shown)] for i, name in names.items()]
    if title:
        print(f"\n{title}")
    print(text_table(head, cells))
    print(
        f"  kept: {of[MODEL, 'kept', '']} of the neurons hold perplexity at {of[MODEL, 'perplexity', 'kept']}, within "
        f"{100 * tolerance:g} % of {of[MODEL, 'perplexity', 'dense']}; CETT {of[MODEL, 'cett', '']}"
    )
    print(
        "  CETT: norm of what an MLP skips over that of its output; .9 mass: share of neurons with .9 of Σ |a|·‖w_out‖"
    )
    print("  PR/N: participation ratio over neurons; frac, pr: the prototype's, of the MLP's outputs")
