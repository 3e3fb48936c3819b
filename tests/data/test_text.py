import json
from pathlib import Path

import numpy as np
import pytest

from slms.data import text
from slms.data.corpora import documents
from slms.data.labels import MOST_DOMAINS
from slms.data.text import BlockSpec, load_blocks
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(EMBEDDED["stories-1m"])


def spec(corpus, split="validation", validation=None, n_tokens=2048, block_size=64, with_labels=True):
    return BlockSpec(str(corpus), split, validation, "text", 0, block_size, n_tokens, with_labels)


def test_embedded_blocks_decode_to_the_stories_in_order(tokenizer):
    blocks = load_blocks(spec("stories"), tokenizer)
    assert blocks.input_ids.shape == (2048 // 64, 64)
    text = tokenizer.decode(blocks.input_ids.reshape(-1).tolist())
    first, second = (document.text for document, _ in zip(documents("stories", "validation"), range(2), strict=False))
    assert text.startswith(first) and second in text


def test_labels_are_those_of_the_words_that_tokens_belong_to(tokenizer):
    blocks = load_blocks(spec("stories"), tokenizer)
    ids, docs = blocks.input_ids.reshape(-1), blocks.doc_ids.reshape(-1)
    document = next(iter(documents("stories", "validation")))
    names = blocks.label_names
    here = docs == 0
    spans = tokenizer(document.text, return_offsets_mapping=True)["offset_mapping"]
    for family, value_of in (
        ("pos", lambda w: w.pos),
        ("semantic", lambda w: w.semantic),
        ("number", lambda w: w.number),
    ):
        labels = blocks.labels[family].reshape(-1)[here]
        for (start, end), label in zip(spans, labels, strict=False):
            first = start + len(document.text[start:end]) - len(document.text[start:end].lstrip())
            word = next((w for w in document.words if w.start <= first < w.end), None)
            assert label == (-1 if word is None or first >= end else names[family].index(value_of(word)))
    domain = blocks.labels["domain"].reshape(-1)[here]
    assert set(domain[:-1].tolist()) - {-1} == {names["domain"].index(document.domain)}
    assert ids[here][-1] == tokenizer.eos_token_id and domain[-1] == -1


def test_frequency_bins_hold_a_fifth_of_the_text_each(tokenizer):
    blocks = load_blocks(spec("stories", n_tokens=20_000), tokenizer)
    shares = np.bincount(blocks.labels["frequency"].ravel(), minlength=5) / blocks.input_ids.size
    assert np.all(shares > 0.12) and np.all(shares < 0.28), shares


def test_a_corpus_without_enough_text_is_refused(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("too short")
    with pytest.raises(ValueError, match=r"less than one block \(64 tokens\)"):
        load_blocks(spec(tmp_path / "c.txt", "all"), tokenizer)


@pytest.mark.parametrize("wanted", [0, 1, 63])
def test_a_request_of_less_than_a_block_is_refused_as_that(tokenizer, wanted):
    with pytest.raises(ValueError, match=rf"asked for is {wanted}; it must be at least one block \(64 tokens\)"):
        load_blocks(spec("stories", n_tokens=wanted), tokenizer)


def test_other_text_is_labelled_by_the_lexicon(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("The dog saw 3 zyxomma and was happy. " * 40)
    blocks = load_blocks(spec(tmp_path / "c.txt", "all", n_tokens=256), tokenizer)
    pieces = [tokenizer.decode([i]).strip() for i in blocks.input_ids[0]]
    semantic = dict(zip(pieces, blocks.labels["semantic"][0].tolist(), strict=True))
    assert blocks.label_names["semantic"][semantic["dog"]] == "animal"
    assert "domain" not in blocks.labels and -1 in blocks.labels["pos"]


def test_documents_carry_the_domain_that_their_row_names(tmp_path, tokenizer):
    rows = [{"text": f"one two {i} " * 20, "domain": domain} for i, domain in enumerate(["b", None, "a", "b"])]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blocks = load_blocks(spec(tmp_path / "c.jsonl", "all", n_tokens=None, block_size=8), tokenizer)
    assert blocks.label_names["domain"] == ("b", "a")
    found = {(int(i), int(c)) for i, c in zip(blocks.doc_ids.flat, blocks.labels["domain"].flat, strict=True)}
    assert {(i, c) for i, c in found if c >= 0} == {(0, 0), (2, 1), (3, 0)} and (0, -1) in found  # its separator
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps(row | {"domain": f"d{i % 70}"}) + "\n" for i, row in enumerate(rows * 20))
    )
    blocks = load_blocks(spec(tmp_path / "c.jsonl", "all", n_tokens=None, block_size=8), tokenizer)
    assert blocks.label_names["domain"] == tuple(f"d{i}" for i in range(MOST_DOMAINS))
    assert set(blocks.labels["domain"].flat) == set(range(-1, MOST_DOMAINS))


def test_the_cache_notices_a_changed_file(tmp_path, tokenizer):
    path = tmp_path / "c.txt"
    path.write_text("one two three " * 100)
    first = load_blocks(spec(path, "all", n_tokens=64), tokenizer)
    path.write_text("four five six " * 100)
    assert not np.array_equal(first.input_ids, load_blocks(spec(path, "all", n_tokens=64), tokenizer).input_ids)


@pytest.mark.parametrize("fault", [Path.unlink, lambda path: path.write_text("other text")])
def test_a_file_that_changes_or_vanishes_while_it_is_read_leaves_no_blocks(tmp_path, tokenizer, monkeypatch, fault):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join("Once upon a time there was a dog." for _ in range(100)))
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "cache"))
    original = text._encode

    def encode(*args):
        if corpus.exists():
            fault(corpus)
        return original(*args)

    monkeypatch.setattr(text, "_encode", encode)
    with pytest.raises(ValueError, match=r"corpus .*corpus.txt: the file changed or vanished while it was read"):
        load_blocks(spec(corpus, "train", n_tokens=256, with_labels=False), tokenizer)
    assert not list((tmp_path / "cache").rglob("*.npz"))


BOOK = "It was a dark night. " * 300
WHOLE_BOOK = (
    r"c\.txt \(all but every 50th document\): 0 tokens in 0 documents, less than one block \(64 tokens\): the file is "
    r"one document \(documents are parted by blank lines, or by <\|endoftext\|> where that occurs\); every 50th, the "
    r"first included, is held out for validation; name a validation corpus \(data\.corpus\.validation, --validation\)$"
)


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        (BOOK, "train", WHOLE_BOOK),
        ("\n".join(["One story."] * 300), "train", r"the file is one document \(documents are parted by blank lines"),
        ("\n\n".join(["Short."] * 60), "validation", r"\d tokens in 2 documents.*the file holds 60 documents"),
        ("Short.", "all", r"c\.txt: \d tokens in 1 documents.*the file is one document \(.*occurs\)$"),
    ],
)
def test_too_little_text_says_how_documents_are_parted_and_held_out(tmp_path, tokenizer, content, split, message):
    (tmp_path / "c.txt").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_blocks(spec(tmp_path / "c.txt", split), tokenizer)
    assert "\n" not in str(caught.value)


def test_a_book_is_validated_on_whole_and_fewer_tokens_than_asked_are_said_once(tmp_path, tokenizer, caplog):
    (tmp_path / "c.txt").write_text(BOOK)
    for _ in range(2):
        found = load_blocks(spec(tmp_path / "c.txt", n_tokens=10_000), tokenizer).input_ids.size
    assert 1000 < found < 10_000
    said = [record.getMessage() for record in caplog.records if "asked for" in record.getMessage()]
    assert said == [
        f"{tmp_path}/c.txt (every 50th document): {found:,} of the 10,000 tokens asked for; there is no more text"
    ]
    caplog.clear()
    load_blocks(spec(tmp_path / "c.txt", n_tokens=1000), tokenizer)  # 15 blocks of 64 and a rest
    load_blocks(spec(tmp_path / "c.txt", n_tokens=None), tokenizer)
    assert not caplog.records


def test_stories_are_cached_by_all_that_they_are_made_of(tmp_path, monkeypatch):
    made = set()
    monkeypatch.setattr(text, "__file__", str(tmp_path / "text.py"))
    for name in ("stories/engine.py", "stories/words.txt", "stories/plots/01_kite.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        for content in ("a", "b"):
            (tmp_path / name).write_text(content)
            made.add(text._grammar_digest())
    assert len(made) == 6
