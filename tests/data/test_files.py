"""Text files: documents as they were written, and hostile files read in bounded memory or refused in one line."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slms.data import files
from slms.data.files import LONGEST, Document, file_documents


def texts(path, text_field="text"):
    return [document.text for document in file_documents(path, text_field)]


def peak_mib(consume) -> float:
    """MiB that Python and Arrow hold at most while `consume` runs."""
    arrow = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    tracemalloc.start()
    try:
        consume()
        return (tracemalloc.get_traced_memory()[1] + max(0, (pool.max_memory() or 0) - arrow)) / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl"])
def test_a_line_of_two_gigabytes_is_refused_in_bounded_memory(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2 << 30)  # sparse: no disk is used

    def read():
        with pytest.raises(ValueError, match=rf"{name}:1: a line of more than 16,777,216 characters") as caught:
            next(file_documents(tmp_path / name))
        assert "\n" not in str(caught.value)

    assert peak_mib(read) < 8 * LONGEST / 2**20


def test_a_long_document_is_cut_at_a_line_s_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 100)
    lines = [f"line {i:03d} of a text without blank lines\n" for i in range(20)]
    (tmp_path / "c.txt").write_text("".join(lines))
    pieces = texts(tmp_path / "c.txt")
    assert len(pieces) > 5 and all(len(piece) <= 100 for piece in pieces)
    assert "\n".join(pieces) == "".join(lines).strip()


def test_a_parquet_of_kilobytes_that_expands_to_gigabytes_is_read_row_by_row(tmp_path):
    text = "x" * (1 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet", compression="zstd")
    assert (tmp_path / "c.parquet").stat().st_size < 20_000
    del column

    def read():
        found = file_documents(tmp_path / "c.parquet")
        assert all(next(found).text == text for _ in range(300))  # 300 MiB of text so far, 5 GiB in all

    assert peak_mib(read) < 100


def test_a_row_group_that_expands_too_far_is_refused_before_it_is_read(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["y" * 100_000], "blob": ["z" * 100_000]}), tmp_path / "c.parquet")
    assert len(texts(tmp_path / "c.parquet")) == 1
    monkeypatch.setattr(files, "LARGEST_GROUP", 150_000)
    with pytest.raises(ValueError, match=r"row group 0 expands to 200,\d+ bytes; it must be at most 150,000"):
        texts(tmp_path / "c.parquet")


def test_a_document_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 100)
    pq.write_table(pa.table({"text": ["fine", "x" * 101]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet row 1: a document of 101 characters; it must have at most 100"):
        texts(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"fine\n\nnot \xff fine\n", r"c\.txt: not UTF-8 text"),
        ("c.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"c\.jsonl: not UTF-8 text"),
        ("c.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, r"c\.jsonl:2: not UTF-8 JSON lines: nested too deeply"),
        ("c.jsonl", b'{"text": 1' + b"0" * 5000 + b"}\n", r"c\.jsonl:1: not UTF-8 JSON lines"),
        ("c.jsonl", b'{"text": ["a"]}\n', r"c\.jsonl:1: no text in field 'text'"),
        ("c.parquet", b"PAR1" + bytes(100) + b"PAR1", r"c\.parquet: not a parquet file"),
        ("c.parquet", b"", r"c\.parquet: not a parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_invalid_utf8_in_a_parquet_is_one_line(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe bad"])
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())  # says UTF-8, is not
    pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: not a parquet file of UTF-8 text"):
        texts(tmp_path / "c.parquet")


def test_other_columns_of_a_parquet_are_not_read(tmp_path):
    pq.write_table(pa.table({"n": [1, 2], "story": ["a", "b"]}), tmp_path / "c.parquet")
    assert texts(tmp_path / "c.parquet", "story") == ["a", "b"]
    for field in ("text", "n"):
        with pytest.raises(ValueError, match=f"no text in field '{field}'"):
            texts(tmp_path / "c.parquet", field)


def test_half_a_character_becomes_the_replacement_character(tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "a \ud83d b \ud83d\ude00"}))
    assert texts(tmp_path / "c.jsonl") == ["a \ufffd b \U0001f600"]


def test_a_line_may_hold_several_documents(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a<|endoftext|>b b<|endoftext|>c\nd\n<|endoftext|>\n<|endoftext|><|endoftext|>e\n")
    assert texts(path) == ["a", "b b", "c\nd", "e"]
    path.write_text("a\nb\n\n \nc\n\nd")
    assert texts(path) == ["a\nb", "c", "d"]


def test_a_row_may_name_its_domain(tmp_path):
    """A word or a few; anything else in that field is no domain, and no error."""
    named = ["code", "a b", "", "x" * 101, "two\nlines", None]
    rows = [{"text": f"t{i}", "domain": domain} for i, domain in enumerate([*named, 3, ["code"]])] + [{"text": "t8"}]
    found = ["code", "a b"] + [None] * 7
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(file_documents(tmp_path / "c.jsonl")) == [Document(f"t{i}", None, name) for i, name in enumerate(found)]
    column = pa.array(named)
    for domains in (column, column.dictionary_encode()):
        pq.write_table(pa.table({"text": [f"t{i}" for i in range(6)], "domain": domains}), tmp_path / "c.parquet")
        assert [document.domain for document in file_documents(tmp_path / "c.parquet")] == found[:6]
    pq.write_table(pa.table({"text": ["t0"], "domain": [1]}), tmp_path / "c.parquet")
    assert list(file_documents(tmp_path / "c.parquet")) == [Document("t0")]
    pq.write_table(pa.table({"domain": ["the text"]}), tmp_path / "c.parquet")
    assert list(file_documents(tmp_path / "c.parquet", "domain")) == [Document("the text", None, "the text")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_is_no_text(tmp_path, end):
    for name, content in (
        ("c.txt", f"one{end}{end}two\ufeff"),
        ("c.jsonl", f'{{"text": "one"}}{end}{{"text": "two\ufeff"}}'),
    ):
        (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
        assert texts(tmp_path / name) == ["one", "two\ufeff"], name  # a mark elsewhere is the text's own
