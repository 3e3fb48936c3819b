"""`eval.py capture`: activations of a model's MLPs on disk."""

import hashlib
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

from slms.commands.subject import open_model
from slms.data.probes import MANIFEST, read_tasks
from slms.data.text import EMBEDDED
from slms.models.anatomy import list_layers, named_layers
from slms.models.capture import SITES, Text, corpus_texts, windows
from slms.models.capture import capture as write_capture
from slms.report.artifacts import artifact_directory
from slms.report.facts import command_line
from slms.report.tables import amount

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def capture(
    model: str,
    layers: list[str] | None = None,
    site: str = "neurons",
    task_id: list[str] | None = None,
    probe_manifest: str | None = None,
    corpus: str = EMBEDDED,
    validation: str | None = None,
    split: str = "validation",
    n_tokens: int = 131_072,
    max_tokens: int | None = None,
    dtype: str = "float32",
    shard_tokens: int = 16_384,
    batch_size: int = 16,
    output_dir: str = "artifacts",
) -> None:
    """Activations of MLPs with token ids, positions and mask, in shards; memory holds one shard, whatever the length.

    A capture that was killed goes on where it stopped when the same command is given again. Each document is read
    from its first token, in windows of MAX_TOKENS.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        layers: names such as gpt_neox.layers.10.mlp, or numbers; all by default.
        site: neurons (input of the down-projection), output (of the MLP) or residual (after the layer).
        task_id: capture the prompts of these tasks in place of the corpus.
        probe_manifest: where tasks are looked up; the project's own by default. Without TASK_ID, all of its tasks.
        corpus: `stories`, a .txt/.jsonl/.parquet file or a dataset id.
        validation: a second corpus that holds the validation split.
        split: train, validation or test.
        n_tokens: tokens of the corpus to capture.
        max_tokens: longest window that the model reads at a time; its context, at most 256, by default.
        dtype: of the activations on disk: float32, float16 or bfloat16.
        shard_tokens: tokens of one shard.
        batch_size: windows of one forward pass.
        output_dir: shards and meta.jsonl go to OUTPUT_DIR/capture/NAME/TEXT-SITE/.
    """
    for flag, value, known in (("site", site, SITES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"--{flag} {value}: it must be one of {', '.join(known)}")
    for flag, count in (("n_tokens", n_tokens), ("shard_tokens", shard_tokens), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"--{flag} {count}: it must be at least 1")
    by_task = task_id is not None or probe_manifest is not None
    tasks = read_tasks(probe_manifest or MANIFEST, task_id) if by_task else []
    net, tokenizer = open_model(model)
    names = {layer.index: layer.name for layer in list_layers(net)}
    chosen = {i: names[i] for i in named_layers(net, layers)}
    context = getattr(net.config, "max_position_embeddings", None) or 256
    width = min(max_tokens or 256, context)
    if max_tokens is not None and not 1 <= max_tokens <= context:
        raise ValueError(f"--max_tokens {max_tokens}: it must be between 1 and the model's context, {context}")
    about: dict[str, object] = {"model": model, "max_tokens": width}
    if by_task:
        limits = [min(task.max_tokens or width, width) for task in tasks]
        ids = [tokenizer(task.texts, verbose=False)["input_ids"] for task in tasks]
        prompts = [
            (row[:limit], task.task_id) for task, limit, rows in zip(tasks, limits, ids, strict=True) for row in rows
        ]
        texts = iter([Text(row, i, name) for i, (row, name) in enumerate(prompts)])
        total = sum(len(row) for row, _ in prompts)
        digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
        about |= {"task_ids": [task.task_id for task in tasks], "text_digest": digest}
        place = "-".join(task.task_id for task in tasks) if len(tasks) <= 3 else f"{len(tasks)}-tasks"
    else:
        texts = corpus_texts(corpus, split, tokenizer, n_tokens, validation)
        total, place = n_tokens, f"{Path(corpus).stem}-{split}"
        about |= {"corpus": corpus, "validation": validation, "split": split, "n_tokens": n_tokens}
    special = sorted({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None})
    directory = artifact_directory(output_dir, "capture", model) / f"{place}-{site}"
    with tqdm(total=total, unit="tok", unit_scale=True, leave=False, delay=2) as bar:
        n = write_capture(
            net, windows(texts, width), directory, chosen, site, about, special, shard_tokens, batch_size,
            DTYPES[dtype], bar.update,
        )  # fmt: skip
    if n == 0:
        raise ValueError(f"--corpus {corpus}: no text in split {split!r}")
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    print(f"{command_line()}\n{amount(n)} tokens, {len(chosen)} layers at {site}, {amount(size)}B in {directory}")
