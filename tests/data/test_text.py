import json
from pathlib import Path

import numpy as np
import pytest

from slms.data import text
from slms.data.text import BlockSpec, CorpusConfig, documents, load_blocks
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


def test_splits_share_no_story():
    made = {split: [d.text for d, _ in zip(documents("stories", split), range(200), strict=False)] for split in
            ("train", "validation", "test")}  # fmt: skip
    assert not set(made["train"]) & set(made["validation"])
    assert not set(made["train"]) & set(made["test"])


def test_txt_documents_are_separated_and_every_fiftieth_is_held_out(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("<|endoftext|>\n".join(f"story {i}\nhas two lines\n" for i in range(120)))
    train = [d.text for d in documents(str(path), "train")]
    held = [d.text for d in documents(str(path), "validation")]
    assert held == [f"story {i}\nhas two lines" for i in (0, 50, 100)]
    assert len(train) == 117 and not set(train) & set(held)


def test_txt_without_separators_splits_at_blank_lines(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("one\ntwo\n\nthree\n\n\nfour")
    assert [d.text for d in documents(str(path), "all")] == ["one\ntwo", "three", "four"]


def test_a_validation_corpus_leaves_the_training_corpus_whole(tmp_path):
    (tmp_path / "a.txt").write_text("a b\n\nc d")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "held out"}) + "\n")
    names = str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")
    assert [d.text for d in documents(names[0], "train", validation=names[1])] == ["a b", "c d"]
    assert [d.text for d in documents(names[0], "validation", validation=names[1])] == ["held out"]


def test_parquet_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["x y", "z"]}), tmp_path / "c.parquet")
    assert [d.text for d in documents(str(tmp_path / "c.parquet"), "all")] == ["x y", "z"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r"c.jsonl:2: no text in field 'text'"),
        ("c.jsonl", b'{"text": "a"}\nnot json\n', r"not UTF-8 JSON lines"),
        ("c.txt", b"\xff\xfe\x00bad", r"not UTF-8 text"),
        ("c.parquet", b"PAR1 not really", r"not a parquet file"),
        ("c.csv", b"a,b", r"the ending must be one of"),
    ],
)
def test_unreadable_files_say_which_and_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(documents(str(tmp_path / name), "all"))


def test_a_corpus_without_enough_text_is_refused(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("too short")
    with pytest.raises(ValueError, match=r"less than one block of data.block_size \(64\)"):
        load_blocks(spec(tmp_path / "c.txt", "all"), tokenizer)


def test_other_text_is_labelled_by_the_lexicon(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_text("The dog saw 3 zyxomma and was happy. " * 40)
    blocks = load_blocks(spec(tmp_path / "c.txt", "all", n_tokens=256), tokenizer)
    pieces = [tokenizer.decode([i]).strip() for i in blocks.input_ids[0]]
    semantic = dict(zip(pieces, blocks.labels["semantic"][0].tolist(), strict=True))
    assert blocks.label_names["semantic"][semantic["dog"]] == "animal"
    assert "domain" not in blocks.labels and -1 in blocks.labels["pos"]


def test_the_cache_notices_a_changed_file(tmp_path, tokenizer):
    path = tmp_path / "c.txt"
    path.write_text("one two three " * 100)
    first = load_blocks(spec(path, "all", n_tokens=64), tokenizer)
    path.write_text("four five six " * 100)
    assert not np.array_equal(first.input_ids, load_blocks(spec(path, "all", n_tokens=64), tokenizer).input_ids)


def test_corpus_config_needs_one_kind_of_name():
    with pytest.raises(ValueError, match="needs either"):
        CorpusConfig()
    pair = CorpusConfig(hub="a/b", embedded="stories")
    assert pair.resolve("embedded") == "stories" and pair.resolve("hub") == "a/b"
    with pytest.raises(ValueError, match="has no `embedded` entry"):
        CorpusConfig(hub="a/b").resolve("embedded")


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
