"""Captures activations to disk: shards of safetensors with token ids, positions and documents, and `meta.jsonl`.

A capture is a directory. Its shards are written whole, one after the other, so a killed capture continues after its
last shard, and memory holds only one shard whatever the length of the text. docs/formats.md describes the files.

Shapes: b rows, t position, n tokens of a shard, w width of a site.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.data.corpora import documents
from slms.data.text import encode
from slms.files import replacing, write_atomic
from slms.models.sites import Site, read_sites
from slms.models.weights import model_digest

SITES = {"neurons": "neurons", "output": "mlp_out", "residual": "residual"}
"""As a user names them → as `slms.models.sites` does."""
COLUMNS = ("token_ids", "positions", "doc_ids", "mask")
VERSION = 1
ABOUT, META = "capture.json", "meta.jsonl"


class Text(NamedTuple):
    """The tokens of one document that are read."""

    ids: Sequence[int]
    doc_id: int
    task_id: str | None = None


def corpus_texts(
    name: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    n_tokens: int,
    validation: str | None = None,
    text_field: str = "text",
) -> Iterator[Text]:
    """Yield documents of a corpus, with separators, until n_tokens; they stream from the source, and none is kept."""
    total = 0
    for i, document in enumerate(documents(name, split, validation=validation, text_field=text_field)):
        ids = encode(document.text, tokenizer)
        yield Text(ids[: n_tokens - total], i)
        total += len(ids)
        if total >= n_tokens:
            return


def windows(texts: Iterable[Text], width: int) -> Iterator[Text]:
    """Cut texts into parts of at most `width` tokens; the model reads each part on its own."""
    for text in texts:
        for start in range(0, len(text.ids), width):
            yield text._replace(ids=text.ids[start : start + width])


class Shard(NamedTuple):
    """The contents of one shard."""

    tensors: dict[str, Tensor]
    """`token_ids`, `positions` in the window, `doc_ids` and `mask`, all [n], and each layer's activations [n, w]"""
    meta: dict[str, Any]
    """the shard's line of meta.jsonl"""


def capture(
    model: PreTrainedModel,
    texts: Iterable[Text],
    directory: Path,
    layers: Mapping[int, str],
    site: str,
    about: Mapping[str, Any],
    special: Sequence[int] = (),
    shard_tokens: int = 16_384,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], object] = lambda tokens: None,
) -> int:
    """Write the activations of texts, none longer than the model's context; continue an earlier call that was killed.

    Args:
        layers: maps a layer's index to its name, the key of its activations.
        site: `neurons` (the input of the down-projection), `output` (of the MLP) or `residual` (after the layer).
        about: a description of the text. It must match, with model, layers and site, to continue a directory.
        special: token ids whose `mask` is False.
        dtype: the dtype of the activations on disk.
        progress: called with the number of tokens just done, including those of an earlier call.

    Returns:
        The number of tokens captured over all calls.

    Raises:
        ValueError: the directory holds a capture of another model, text, site or layers.
    """
    made_from = {
        "version": VERSION,
        "model_digest": model_digest(model),
        "site": site,
        "layers": list(layers.values()),
        "dtype": str(dtype).removeprefix("torch."),
        "shard_tokens": shard_tokens,
        **about,
    }
    done = _begin(directory, made_from)
    total, sites = 0, {name: Site(SITES[site], i) for i, name in layers.items()}
    for index, window in enumerate(_shards(texts, shard_tokens)):
        n = sum(len(text.ids) for text in window)
        if index >= len(done):
            tensors = _tensors(model, window, sites, special, batch_size, dtype)
            name = f"shard-{index:06d}.safetensors"
            with replacing(directory / name) as temporary:
                save_file(tensors, temporary)
            tasks = list(dict.fromkeys(text.task_id for text in window if text.task_id))
            done.append(
                {
                    "file": name,
                    "tokens": n,
                    "first_token": total,
                    "first_document": window[0].doc_id,
                    "last_document": window[-1].doc_id,
                    "windows": len(window),
                    "task_ids": tasks,
                }
            )
            write_atomic(directory / META, "".join(json.dumps(row) + "\n" for row in done))
        elif done[index]["tokens"] != n or done[index]["first_token"] != total:
            raise ValueError(f"{directory / done[index]['file']}: holds other tokens than the text; remove {directory}")
        total += n
        progress(n)
    return total


def _begin(directory: Path, made_from: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of finished shards in a directory that this capture may continue."""
    path = directory / ABOUT
    if not path.exists():
        write_atomic(path, json.dumps(made_from, indent=1) + "\n")
        return []
    stored = _about(path)
    for key, value in made_from.items():
        if stored.get(key) != value:
            raise ValueError(
                f"{directory}: holds a capture with {key} {stored.get(key)}, not {value}; name another "
                "--output_dir or remove it"
            )
    return _meta(directory)


def _about(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a capture's description: {error}") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: not a capture's description")
    return stored


def _meta(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of meta.jsonl whose shards exist."""
    path, found = directory / META, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            present = (directory / row["file"]).is_file()
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path}:{number}: not a shard's description") from None
        if not present:
            break
        found.append(row)
    return found


def _shards(texts: Iterable[Text], shard_tokens: int) -> Iterator[list[Text]]:
    """Group texts into runs of at least `shard_tokens` tokens; only the last may be shorter."""
    run: list[Text] = []
    n = 0
    for text in texts:
        if len(text.ids):
            run.append(text)
            n += len(text.ids)
        if n >= shard_tokens:
            yield run
            run, n = [], 0
    if run:
        yield run


def _tensors(
    model: PreTrainedModel,
    window: Sequence[Text],
    sites: Mapping[str, Site],
    special: Sequence[int],
    batch_size: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Compute a shard's tensors: rows are padded on the right so that they run together; padding is then dropped."""
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    for start in range(0, len(window), batch_size):
        rows = window[start : start + batch_size]
        lengths = torch.tensor([len(row.ids) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
        real = (torch.arange(ids.shape[1]) < lengths[:, None]).flatten()
        read = read_sites(model, ids.to(model.device), list(sites.values()))
        for name, place in sites.items():
            found[name].append(read[place.name].cpu()[real].to(dtype))
    tokens = torch.tensor([i for row in window for i in row.ids])
    tensors = {
        "token_ids": tokens,
        "positions": torch.cat([torch.arange(len(row.ids)) for row in window]),
        "doc_ids": torch.cat([torch.full((len(row.ids),), row.doc_id) for row in window]),
        "mask": ~torch.isin(tokens, torch.tensor(sorted(special), dtype=torch.int64)),
    }
    return tensors | {name: torch.cat(parts) for name, parts in found.items()}


def read_capture(directory: str | Path, model: PreTrainedModel | None = None) -> Iterator[Shard]:
    """Yield the shards of a capture, one at a time.

    Args:
        model: if given, the capture must be of this model.

    Raises:
        ValueError: there is no capture, or it is damaged or of another model.
    """
    directory = Path(directory)
    if not (directory / ABOUT).is_file():
        raise ValueError(f"{directory}: no capture; it has no {ABOUT}")
    about = _about(directory / ABOUT)
    if model is not None and about.get("model_digest") != (digest := model_digest(model)):
        raise ValueError(f"{directory}: a capture of another model ({about.get('model_digest')}, not {digest})")
    for row in _meta(directory):
        try:
            tensors = load_file(directory / row["file"])
        except SafetensorError as error:
            raise ValueError(f"{directory / row['file']}: damaged: {error}") from None
        yield Shard(tensors, row)
