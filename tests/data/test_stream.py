"""Streams against the plain reading of the whole corpus; a hub corpus is stood in for by a directory in its form."""

import json
from itertools import islice

import pytest
import torch

from slms.data.stream import Corpus, StreamLoader, TokenStream
from slms.data.text import encode
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED

T, B = 16, 2


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(EMBEDDED["stories-1m"])


def texts(n):
    return [f"Once there were {i} dogs and {i * 7 % 11} cats." + " They ran." * (i % 5) for i in range(n)]


@pytest.fixture(scope="module", params=["file", "hub_files", "hub_rows"])
def corpus(request, tmp_path_factory):
    """One file; a dataset of four files, which are dealt whole; a dataset of one, whose rows are dealt."""
    folder = tmp_path_factory.mktemp(request.param)
    rows = [json.dumps({"text": text}) + "\n" for text in texts(60)]
    n_files = 4 if request.param == "hub_files" else 1
    for i in range(n_files):
        (folder / f"train-{i}.jsonl").write_text("".join(rows[i * 60 // n_files : (i + 1) * 60 // n_files]))
    name = folder / "train-0.jsonl" if request.param == "file" else folder
    return Corpus(str(name), 0, str(name), "text")  # a validation corpus, so that no document is held out


def tokens(tokenizer):
    return [token for text in texts(60) for token in encode(text, tokenizer)]


def loader(corpus, tokenizer, rank=0, world=1, workers=0, batches=5):
    return StreamLoader(TokenStream(corpus, tokenizer, B, T, rank, world), batches, workers)


def ids(batches):
    return [batch["input_ids"] for batch in batches]


def test_one_shard_is_the_corpus_in_order_again_and_again(corpus, tokenizer):
    whole = tokens(tokenizer)
    batches = loader(corpus, tokenizer, batches=2 * len(whole) // (B * T))
    flat = torch.cat(ids(batches)).flatten().tolist()
    assert flat == (whole + whole)[: len(flat)] and len(flat) > 1.5 * len(whole)


def test_ranks_read_every_document_once_between_them(corpus, tokenizer):
    documents = []
    for rank in range(2):
        wanted = len(tokens(tokenizer)) // (2 * B * T) - 2
        flat = torch.cat(ids(loader(corpus, tokenizer, rank, 2, batches=wanted))).flatten().tolist()
        documents += tokenizer.decode(flat).split("<|endoftext|>")[:-1]
    documents = [document.strip() for document in documents]
    assert len(documents) == len(set(documents)) > 40 and set(documents) <= set(texts(60))


@pytest.mark.parametrize(("workers", "stop"), [(0, 1), (0, 3), (0, 5), (0, 7), (2, 3), (2, 7)])
def test_a_stopped_stream_goes_on_exactly(corpus, tokenizer, workers, stop):
    whole, stopped = (loader(corpus, tokenizer, 1, 2, workers) for _ in range(2))
    expected = ids(whole) + ids(whole)
    seen = ids(islice(stopped, min(stop, 5)))
    if stop > 5:
        seen += ids(islice(stopped, stop - 5))
    resumed = loader(corpus, tokenizer, 1, 2, workers)
    state = json.loads(json.dumps(stopped.state_dict()))  # plain types only, as a checkpoint must hold
    state["ranks"] = [[None] * len(stopped.states), state["ranks"][0]]  # as gathered from two ranks
    resumed.load_state_dict(state)
    while len(seen) < 10:
        seen += ids(resumed)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_other_shards_are_refused(corpus, tokenizer):
    state = loader(corpus, tokenizer).state_dict()
    with pytest.raises(ValueError, match=r"were \(1, 1, 2\) and are now \(2, 1, 2\)"):
        loader(corpus, tokenizer, 0, 2).load_state_dict(state)


def test_a_shard_without_a_document_is_refused(tmp_path, tokenizer):
    (tmp_path / "one.txt").write_text("One document.")
    only = Corpus(str(tmp_path / "one.txt"), 0, "x", "text")
    with pytest.raises(ValueError, match="no document for shard 2 of 2"):
        next(iter(loader(only, tokenizer, 1, 2)))
