"""Corpora by name: what is read, from where, and whether it is still the same."""

import json

import pytest

from slms.data import corpora
from slms.data.corpora import CorpusConfig, absolute_name, described, documents, fingerprint, kind, read_from


def test_splits_share_no_story():
    made = {
        split: [d.text for d, _ in zip(documents("stories", split), range(200), strict=False)]
        for split in ("train", "validation", "test")
    }
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


def test_corpus_config_needs_one_kind_of_name():
    with pytest.raises(ValueError, match="needs either"):
        CorpusConfig()
    pair = CorpusConfig(hub="a/b", embedded="stories")
    assert pair.resolve("embedded") == "stories" and pair.resolve("hub") == "a/b"
    with pytest.raises(ValueError, match="has no `embedded` entry"):
        CorpusConfig(hub="a/b").resolve("embedded")


def test_a_split_that_a_file_does_not_have_is_refused(tmp_path):
    (tmp_path / "c.txt").write_text("a\n\nb")
    with pytest.raises(ValueError, match="split is 'valid'; of a file it must be one of train, validation, test, all"):
        list(documents(str(tmp_path / "c.txt"), "valid"))


def test_the_embedded_corpus_validates_on_its_own_split(tmp_path):
    (tmp_path / "c.txt").write_text("a\n\nb")
    found = next(documents(str(tmp_path / "c.txt"), "validation", validation="stories"))
    assert found.text == next(documents("stories", "validation")).text
    assert read_from("c.txt", "validation", "stories") == "stories (validation)"


def test_words_name_what_is_really_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "rows").mkdir()
    a = f"{tmp_path}/a.txt"
    assert read_from("a.txt", "validation") == f"{a} (every 50th document)"
    assert read_from("a.txt", "train") == f"{a} (all but every 50th document)"
    assert read_from("a.txt", "all") == read_from("a.txt", "train", "b.txt") == a
    assert read_from("me/tales", "test", "a.txt") == a
    assert read_from("me/tales", "test") == "me/tales (test)"
    assert [kind(name) for name in ("stories", "a.txt", "gone.jsonl", "rows", "me/tales")] == [
        "embedded",
        "local",
        "local",
        "local",
        "hub",
    ]
    assert described("me/tales", "a.txt") == f"data me/tales (hub), validation {a}"
    assert described("rows") == f"data {tmp_path}/rows"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A corpus of two files, named relatively, as a run records it."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.txt", "valid.jsonl"):
        (tmp_path / name).write_text('{"text": "one two three"}\n' * 9)
    return CorpusConfig(name="train.txt", validation="valid.jsonl").recorded()


def test_a_recorded_corpus_is_the_same_from_any_directory(recorded, tmp_path, monkeypatch):
    assert (recorded.name, recorded.validation) == (f"{tmp_path}/train.txt", f"{tmp_path}/valid.jsonl")
    assert list(recorded.files) == [recorded.name, recorded.validation]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    (tmp_path / "other" / "train.txt").write_text("other text")
    assert recorded.recorded() == recorded
    assert CorpusConfig(hub="me/tales", embedded="stories").recorded().files is None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda path: path.unlink(), r"train\.txt: no such file; the run read 234 bytes, blake2b"),
        (lambda path: path.write_text(path.read_text().replace("two", "six")), r"train\.txt: its text has changed"),
        (lambda path: path.open("a").write("more"), r"has changed since the run read it \(234 bytes, .* then, 238 "),
    ],
)
def test_a_file_that_is_gone_or_changed_is_refused(recorded, tmp_path, fault, message):
    fault(tmp_path / "train.txt")
    with pytest.raises(ValueError, match=message) as caught:
        recorded.recorded()
    assert "\n" not in str(caught.value)


def test_a_large_file_is_compared_by_pieces_of_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_PIECES", 5)
    monkeypatch.setattr(corpora, "_PIECE", 10)
    path, data = tmp_path / "c.txt", bytearray(range(103))
    path.write_bytes(data)
    before = fingerprint(str(path))
    for place in (0, 9, 25, 50, 102):  # in the first, the second, the middle and the last piece
        changed = data.copy()
        changed[place] += 1
        path.write_bytes(changed)
        assert fingerprint(str(path)) != before, place
    path.write_bytes(data + b"x")
    assert fingerprint(str(path)) != before


def test_the_name_of_a_corpus_that_is_no_path_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("stories") == "stories" and absolute_name("me/tales") == "me/tales"
    assert absolute_name("gone.txt") == f"{tmp_path}/gone.txt"
