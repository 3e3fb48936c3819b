"""A dump splits by document, keeps each row's origin and labels, and holds the test documents as blocks."""

import json

import numpy as np
import pytest
import torch

from benchmarks.coder_data import divided, read_about, read_rows, read_test_blocks
from slms.data.text import Blocks, BlockSpec, load_blocks
from slms.models.base import load_base
from slms.models.sites import find_site, read_sites

SPLITS = ("train", "valid", "test")


def blocks_of(acts_of, split):
    """The blocks that a split of the dump was read from, made anew."""
    folder, size = acts_of
    _, tokenizer = load_base(str(folder / "base"))
    wanted = {"train": ("train", 3000), "held": ("validation", 2000)}[split]
    return load_blocks(BlockSpec("stories", wanted[0], None, "text", 0, size, wanted[1], True), tokenizer)


@pytest.fixture(scope="module")
def made(coders):
    return coders, 64


def documents(blocks):
    """The token ids of each document that the blocks hold whole or in part, by its number."""
    return {int(i): tuple(blocks.input_ids[blocks.doc_ids == i].tolist()) for i in np.unique(blocks.doc_ids)}


def test_no_document_stands_in_two_splits(made):
    folder, _ = made
    found = {split: set(read_rows(str(folder / "acts"), split).document.tolist()) for split in SPLITS}
    assert all(found.values())
    assert not (found["train"] & found["valid"] | found["train"] & found["test"] | found["valid"] & found["test"])
    train, held = blocks_of(made, "train"), blocks_of(made, "held")
    texts = set(documents(train).values())
    assert len(texts) > 5 and not texts & set(documents(held).values())
    assert found["train"] == set(documents(train))
    assert found["valid"] | found["test"] <= {i + train.n_documents for i in documents(held)}


def test_no_block_of_the_test_holds_a_document_of_another_split(made):
    folder, _ = made
    other = {i for split in ("train", "valid") for i in read_rows(str(folder / "acts"), split).document.tolist()}
    blocks = read_test_blocks(str(folder / "acts"))
    assert not other & set(np.unique(blocks.doc_ids).tolist())
    assert set(read_rows(str(folder / "acts"), "test").document.tolist()) <= set(np.unique(blocks.doc_ids).tolist())


def test_rows_carry_their_token_labels_and_activation(made):
    folder, _ = made
    model, tokenizer = load_base(str(folder / "base"))
    train, held = blocks_of(made, "train"), blocks_of(made, "held")
    whole = Blocks(
        np.concatenate([train.input_ids, held.input_ids]),
        np.concatenate([train.doc_ids, held.doc_ids + train.n_documents]),
        {family: np.concatenate([train.labels[family], held.labels[family]]) for family in train.labels},
        train.label_names,
    )
    ids = torch.from_numpy(whole.input_ids.astype("int64"))
    x = read_sites(model.eval(), ids, [find_site(model, "residual.0")])["residual.0"]
    for split in SPLITS:
        rows = read_rows(str(folder / "acts"), split).at(slice(None))
        assert not np.isin(rows.token, [tokenizer.eos_token_id]).any() and len(rows.x) > 100
        nearest = [torch.cdist(torch.from_numpy(row[None]), x).argmin().item() for row in rows.x[:40]]
        for at, i in enumerate(nearest):
            assert rows.token[at] == whole.input_ids.flat[i]
            for family in ("pos", "semantic", "number"):
                assert rows.labels[family][at] == whole.labels[family].flat[i]
    assert set(read_about(str(folder / "acts"))["classes"]) == set(train.label_names)


def test_every_token_is_kept_once_but_special_and_extreme_ones(made):
    folder, _ = made
    train = blocks_of(made, "train")
    rows = read_rows(str(folder / "acts"), "train")
    _, tokenizer = load_base(str(folder / "base"))
    kept = train.input_ids.flatten() != tokenizer.eos_token_id
    assert np.array_equal(np.sort(rows.token), np.sort(train.input_ids.flatten()[kept]))
    assert not np.array_equal(rows.token, train.input_ids.flatten()[kept])  # shuffled, as the others are not
    test = read_test_blocks(str(folder / "acts"))
    plain = test.input_ids.flatten()
    assert np.array_equal(read_rows(str(folder / "acts"), "test").token, plain[plain != tokenizer.eos_token_id])
    about = json.loads((folder / "acts/about.json").read_text())
    assert about["train"] == len(rows.x) and about["train_documents"] == len(np.unique(rows.document))


def test_divided_leaves_out_the_document_on_the_border():
    docs = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 2], [2, 2, 3], [3, 3, 3]])
    blocks = Blocks(docs.copy(), docs, {"pos": docs.copy()}, {"pos": ("a",)})
    valid, test = divided(blocks, 7)
    assert valid.doc_ids.tolist() == docs[:2].tolist()
    assert test.doc_ids.tolist() == docs[3:].tolist() == test.labels["pos"].tolist()
    with pytest.raises(ValueError, match="--n_valid 2"):
        divided(blocks, 2)
    with pytest.raises(ValueError, match="no document for the test"):
        divided(blocks, 12)
