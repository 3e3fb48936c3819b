"""Reads documents from text files, one at a time, in bounded memory and with errors that name the line or row.

In `.txt` files, `<|endoftext|>` marks separate documents, or blank lines if there is no such mark. `.jsonl` and
`.parquet` files hold one document per row, in a text field, and may name its domain. A byte-order mark at the beginning
is not text.
"""

import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple, TextIO

SUFFIXES = (".txt", ".jsonl", ".parquet")
SEPARATOR = "<|endoftext|>"
SEPARATED = f"documents are parted by blank lines, or by {SEPARATOR} where that occurs"
LONGEST = 1 << 24
"""Characters of a line or a document; a `.txt` document that is longer is cut at a line's end, all else is refused."""
DOMAIN = "domain"
"""The field of a row that names the document's domain, if it is a word or a few."""
LONGEST_DOMAIN = 100
"""Characters; what is longer, or not printable, names no domain."""
LARGEST_GROUP = 1 << 31
"""Bytes that a row group of a parquet file may expand to, by its own account."""


class Document(NamedTuple):
    """One text; only the embedded corpus has `words`."""

    text: str
    words: list | None = None
    domain: str | None = None


def file_documents(path: Path, text_field: str = "text") -> Iterator[Document]:
    """Yield the documents of a file, in order.

    Raises:
        ValueError: there is no such file, its ending is not in `SUFFIXES`, or a line or row is unreadable (file:line).
    """
    if not path.is_file():
        raise ValueError(f"corpus {path}: no such file")
    if path.suffix == ".txt":
        yield from map(Document, _txt_texts(path))
    elif path.suffix == ".jsonl":
        yield from _jsonl_documents(path, text_field)
    elif path.suffix == ".parquet":
        yield from _parquet_documents(path, text_field)
    else:
        raise ValueError(f"corpus {path}: the ending must be one of {', '.join(SUFFIXES)}")


def document_of(row: object, field: str, where: str) -> Document:
    """Return `text_of` a row with the row's domain."""
    text = text_of(row, field, where)
    domain = row.get(DOMAIN) if isinstance(row, dict) else None
    named = isinstance(domain, str) and 0 < len(domain) <= LONGEST_DOMAIN and domain.isprintable()
    return Document(text, domain=domain if named else None)


def text_of(row: object, field: str, where: str) -> str:
    """Return the text in a field of a row, as Unicode for a tokenizer; ValueError naming `where` if there is none."""
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"corpus {where}: no text in field {field!r}")
    if len(text) > LONGEST:
        raise ValueError(f"corpus {where}: a document of {len(text):,} characters; it must have at most {LONGEST:,}")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can contain half a character, such as \ud83d
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _lines(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines numbered from 1, none longer than `LONGEST`."""
    try:
        for number in count(1):
            line = file.readline(LONGEST + 1)
            if len(line) > LONGEST:
                raise ValueError(f"corpus {path}:{number}: a line of more than {LONGEST:,} characters")
            if not line:
                return
            yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus {path}: not UTF-8 text: {error}") from None


def _txt_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        marked = any(SEPARATOR in line for _, line in islice(_lines(file, path), 10_000))
    with path.open(encoding="utf-8-sig") as file:
        lines: list[str] = []
        length = 0
        for _, line in _lines(file, path):
            if length + len(line) > LONGEST:
                yield "".join(lines).strip()
                lines, length = [], 0
            *ended, rest = line.split(SEPARATOR) if marked else ([""] * 2 if not line.strip() else [line])
            for end in ended:
                if text := "".join([*lines, end]).strip():
                    yield text
                lines, length = [], 0
            lines.append(rest)
            length += len(rest)
        if text := "".join(lines).strip():
            yield text


def _jsonl_documents(path: Path, text_field: str) -> Iterator[Document]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in _lines(file, path):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                raise ValueError(f"corpus {path}:{number}: not UTF-8 JSON lines: nested too deeply") from None
            except ValueError as error:
                raise ValueError(f"corpus {path}:{number}: not UTF-8 JSON lines: {error}") from None
            yield document_of(row, text_field, f"{path}:{number}")


def _parquet_documents(path: Path, text_field: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        if not _is_text(schema, text_field):
            raise ValueError(f"corpus {path}: no text in field {text_field!r}")
        # A dictionary holds a text once however often it occurs; a file of kilobytes can hold it a million times.
        columns = [text_field, DOMAIN] if text_field != DOMAIN and _is_text(schema, DOMAIN) else [text_field]
        with pq.ParquetFile(path, read_dictionary=columns) as file:
            number = 0
            for group in range(file.num_row_groups):
                _check_group(path, file.metadata.row_group(group), group)
                for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=columns):
                    for values in zip(*(batch.column(name) for name in columns), strict=True):
                        row = {name: value.as_py() for name, value in zip(columns, values, strict=True)}
                        yield document_of(row, text_field, f"{path} row {number}")
                        number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"corpus {path}: not a parquet file of UTF-8 text: {str(error).splitlines()[0]}") from None


def _is_text(schema, field: str) -> bool:
    """Whether a parquet file has one such column, and it is text."""
    import pyarrow as pa

    kinds = [schema.field(i).type for i in schema.get_all_field_indices(field)]
    kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    return len(kinds) == 1 and bool(pa.types.is_string(kinds[0]) or pa.types.is_large_string(kinds[0]))


def _check_group(path: Path, group, index: int) -> None:
    size = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))
    if size > LARGEST_GROUP:
        raise ValueError(
            f"corpus {path}: row group {index} expands to {size:,} bytes; it must be at most {LARGEST_GROUP:,}"
        )
