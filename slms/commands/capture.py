"""`eval.py capture`: activations of a model's MLPs on disk."""

import hashlib
import json
from pathlib import Path

import torch

from slms.commands.arguments import published
from slms.commands.subject import chosen_text, open_model, run_text, text_source
from slms.data.corpora import CorpusConfig
from slms.data.probe_tasks import MANIFEST, read_tasks
from slms.data.text import say_shortage
from slms.data.tokenizer import special_ids
from slms.measure.journal import identity
from slms.models.anatomy import list_layers, named_layers
from slms.models.capture import SITES, Text, corpus_texts, windows
from slms.models.capture import capture as write_capture
from slms.progress import Progress
from slms.report.artifacts import own_directory
from slms.report.provenance import command_line
from slms.report.tables import amount

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@published(max_tokens="block_size")
def capture(
    model: str,
    layers: list[str] | None = None,
    site: str = "neurons",
    task_id: list[str] | None = None,
    probe_manifest: str | None = None,
    dtype: str = "float32",
    shard_tokens: int = 16_384,
    batch_size: int = 16,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Write the activations of MLPs, with token ids, positions and mask, in shards; memory holds one shard at a time.

    If a capture is killed, give the same command again and it continues where it stopped. Each document is read from
    its first token, in windows of BLOCK_SIZE tokens (published scripts call it `--max_tokens`, which also works).

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        layers: layer names such as gpt_neox.layers.10.mlp, or numbers; by default all layers.
        site: neurons (the input of the down-projection), output (of the MLP) or residual (after the layer).
        task_id: capture the prompts of these tasks instead of the corpus.
        probe_manifest: the file that defines the tasks, by default the project's own; without TASK_ID, all its tasks.
        dtype: type of the activations on disk: float32, float16 or bfloat16.
        shard_tokens: tokens in one shard.
        batch_size: windows in one forward pass.
        output_dir: shards and meta.jsonl go to OUTPUT_DIR/capture/NAME/TEXT-SITE/; each model, text and setting
            has its own such directory.
    """
    for flag, value, known in (("site", site, SITES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"--{flag} {value}: it must be one of {', '.join(known)}")
    by_task = task_id is not None or probe_manifest is not None
    tasks = read_tasks(probe_manifest or MANIFEST, task_id) if by_task else []
    net, tokenizer = open_model(model)
    names = {layer.index: layer.name for layer in list_layers(net)}
    chosen = {i: names[i] for i in named_layers(net, layers)}
    own = run_text(model) | ({"files": {}} if by_task else {})  # whose text is then not read
    read = chosen_text(net, own, **text)
    width, n_tokens, corpus, split = read["block_size"], read["n_tokens"], read["corpus"], read["split"]
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
        texts = corpus_texts(corpus, split, tokenizer, n_tokens, read["validation"], read["text_field"])
        total, place = n_tokens, f"{Path(corpus).stem}-{split}"
        about |= {"corpus": corpus, "validation": read["validation"], "split": split, "n_tokens": n_tokens}
    special = special_ids(tokenizer).tolist()
    files = {} if by_task else CorpusConfig(corpus, read["validation"]).recorded().files
    options = about | {"layers": chosen, "site": site, "dtype": dtype, "shard_tokens": shard_tokens, "files": files}
    directory = own_directory(output_dir, "capture", model, f"{place}-{site}", identity(net) | options)
    with Progress("capturing", total, "tok") as steps:
        n = write_capture(
            net,
            windows(texts, width),
            directory,
            chosen,
            site,
            about,
            special=special,
            shard_tokens=shard_tokens,
            batch_size=batch_size,
            dtype=DTYPES[dtype],
            progress=steps.update,
        )
    if n == 0:
        raise ValueError(f"--corpus {corpus}: no text in split {split!r}")
    if n < total:
        say_shortage(text_source(read), n, total)
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    print(f"{command_line()}\n{amount(n)} tokens, {len(chosen)} layers at {site}, {amount(size)}B in {directory}")
