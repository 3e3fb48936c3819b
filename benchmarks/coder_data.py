"""The activations on which coders are compared: three sets of documents, none in two of them.

A directory that `dump` writes holds, for each of `train`, `valid` and `test`:

    SPLIT.npy        activations [n, d] float32, without special tokens and activations of extreme norm
    SPLIT_rows.npz   of each row, `document` and `token` (its id) and, by label family, `labels_FAMILY` [n]
    test_blocks.npz  the test documents as token blocks, for losses with a coder's output in place of the site
    about.json       model, site, text, sizes, and the class names of each label family

Only training rows are shuffled. Shapes: b blocks, t position, n tokens, d width of the site.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from slms.data.text import Blocks, BlockSpec, load_blocks
from slms.data.tokenizer import special_ids
from slms.files import write_atomic, write_npz
from slms.models.base import load_base
from slms.models.sites import Site, find_site, read_sites
from slms.sae.training_coder import MAX_NORM

BATCH = 16  # blocks in one forward pass


class Rows(NamedTuple):
    """The tokens of one split."""

    x: np.ndarray
    """activations [n, d]"""
    document: np.ndarray
    """[n]; no number stands in two splits"""
    token: np.ndarray
    """token ids [n]"""
    labels: dict[str, np.ndarray]
    """family → class of each token [n], −1 if unknown"""

    def at(self, order: np.ndarray | slice) -> "Rows":
        """A copy of some rows: `order` is a slice, indices or a mask."""
        labels = {family: classes[order] for family, classes in self.labels.items()}
        return Rows(np.array(self.x[order]), self.document[order], self.token[order], labels)


def dump(
    model: str,
    out: str,
    site: str = "residual.3",
    corpus: str = "stories",
    validation: str | None = None,
    n_train: int = 300_000,
    n_valid: int = 16_384,
    n_test: int = 32_768,
    block_size: int = 256,
    seed: int = 0,
) -> None:
    """Write the activations of a site, split by document, with each token's document, id and labels.

    Training documents are the corpus's training split. The first `n_valid` tokens of its validation split choose the
    learning rate; the documents after them are the test.

    Args:
        model: an embedded name, a hub id or a directory.
        out: the directory to write.
        site: the site to read.
        corpus: `stories`, a file or a dataset id.
        validation: the corpus of validation and test documents; null holds out documents of `corpus`.
        n_train: tokens of training text.
        n_valid: tokens of validation text.
        n_test: tokens of test text.
        block_size: tokens of a block, at most the model's positions.
        seed: seed of the text and of the order of the training rows.

    Raises:
        ValueError: the text is too short, or the model has no such site.
    """
    lm, tokenizer = load_base(model)
    assert tokenizer is not None  # `load_base` refuses a base without one
    place, special = find_site(lm.eval(), site), special_ids(tokenizer).numpy()
    size = min(block_size, getattr(lm.config, "max_position_embeddings", block_size))
    train, held = (
        load_blocks(BlockSpec(corpus, split, validation, "text", seed, size, n, True), tokenizer)
        for split, n in (("train", n_train), ("validation", n_valid + n_test))
    )
    assert train.n_documents is not None and held.doc_ids is not None  # labelled blocks carry their documents
    valid, test = divided(held._replace(doc_ids=held.doc_ids + train.n_documents), n_valid)
    found = {name: _read(lm, place, blocks) for name, blocks in (("train", train), ("valid", valid), ("test", test))}
    norms = np.linalg.norm(found["train"].x, axis=1)
    longest = MAX_NORM * float(np.median(norms[~np.isin(found["train"].token, special)]))
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"model": model, "site": site, "corpus": corpus, "validation": validation, "seed": seed}
    for name, rows in found.items():
        kept = rows.at(~np.isin(rows.token, special) & (np.linalg.norm(rows.x, axis=1) <= longest))
        if name == "train":
            kept = kept.at(np.random.default_rng(seed).permutation(len(kept.x)))
        np.save(directory / f"{name}.npy", kept.x)
        arrays = {"document": kept.document, "token": kept.token, **_named(kept.labels)}
        write_npz(directory / f"{name}_rows.npz", **arrays)
        about |= {name: len(kept.x), f"{name}_documents": len(np.unique(kept.document))}
    assert test.doc_ids is not None
    arrays = {"input_ids": test.input_ids, "doc_ids": test.doc_ids, **_named(test.labels)}
    write_npz(directory / "test_blocks.npz", **arrays)
    write_atomic(directory / "about.json", json.dumps(about | {"classes": test.label_names}, indent=1))
    print(json.dumps(about))


def _named(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"labels_{family}": classes for family, classes in labels.items()}


def divided(blocks: Blocks, n_tokens: int) -> tuple[Blocks, Blocks]:
    """The blocks of the first `n_tokens` tokens, and those after them that hold none of their documents.

    Raises:
        ValueError: either would be empty.
    """
    first = blocks.first(n_tokens // blocks.input_ids.shape[1])
    if not len(first.input_ids):
        raise ValueError(f"--n_valid {n_tokens}: less than one block of {blocks.input_ids.shape[1]} tokens")
    assert blocks.doc_ids is not None and first.doc_ids is not None
    after = blocks.doc_ids.min(1) > first.doc_ids.max()
    if not after.any():
        raise ValueError(f"--n_valid {n_tokens}: no document for the test is left after them")
    labels = {family: classes[after] for family, classes in blocks.labels.items()}
    return first, Blocks(blocks.input_ids[after], blocks.doc_ids[after], labels, blocks.label_names)


def _read(lm: PreTrainedModel, place: Site, blocks: Blocks) -> Rows:
    """Every token of the blocks, in order."""
    assert blocks.doc_ids is not None
    parts = [
        read_sites(lm, torch.from_numpy(blocks.input_ids[first : first + BATCH].astype(np.int64)), [place])[place.name]
        for first in range(0, len(blocks.input_ids), BATCH)
    ]
    labels = {family: classes.flatten() for family, classes in blocks.labels.items()}
    return Rows(torch.cat(parts).float().numpy(), blocks.doc_ids.flatten(), blocks.input_ids.flatten(), labels)


def read_about(directory: str) -> dict[str, Any]:
    """What `dump` says of a directory."""
    return json.loads((Path(directory) / "about.json").read_text(encoding="utf-8"))


def read_rows(directory: str, split: str) -> Rows:
    """One split of a directory; its activations stay on disk until they are read."""
    with np.load(Path(directory) / f"{split}_rows.npz") as file:
        labels = {key.removeprefix("labels_"): file[key] for key in file.files if key.startswith("labels_")}
        document, token = file["document"], file["token"]
    return Rows(np.load(Path(directory) / f"{split}.npy", mmap_mode="r"), document, token, labels)


def read_test_blocks(directory: str) -> Blocks:
    """The test documents as token blocks."""
    with np.load(Path(directory) / "test_blocks.npz") as file:
        arrays = {key: file[key] for key in file.files}
    names = {family: tuple(classes) for family, classes in read_about(directory)["classes"].items()}
    labels = {family: arrays[f"labels_{family}"] for family in names}
    return Blocks(arrays["input_ids"], arrays["doc_ids"], labels, names)
