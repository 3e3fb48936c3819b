"""Yields the documents of a corpus by name, resolves the name to a file, and checks that the file is unchanged.

A corpus is one string: `stories` (embedded), a file (`.txt`, `.jsonl`, `.parquet`), a directory in the form of a hub
dataset, or the id of a dataset on the Hugging Face hub.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from slms.data.dataset import dataset_documents, dataset_files
from slms.data.files import SUFFIXES, Document, file_documents
from slms.data.stories import story

EMBEDDED = "stories"
HOLD_OUT = 50
"""Without a validation corpus, every 50th document of a file is held out."""
SPLITS = ("train", "validation", "test", "all")
"""Splits of a file; `all` is the whole of it."""
_PIECES, _PIECE = 256, 1 << 20


@dataclass(frozen=True)
class CorpusConfig:
    """The text to read.

    Args:
        name: `stories` (embedded), a `.txt`/`.jsonl`/`.parquet` file, a directory in the form of a hub dataset, or a
            Hugging Face dataset id; overrides `hub`.
        validation: a second corpus to validate on; by default the corpus's own validation split, or every 50th
            document of a file, which training then leaves out.
        hub: the corpus to use if there is no `name` and the base model comes from the hub; goes with `embedded`.
        embedded: the corpus to use instead of `hub` if the base model is the embedded one.
        text_field: the field that holds the text in JSON lines, parquet and hub corpora.
        files: the size and digest of each file that was read; train.py writes this. A run's config refuses a file that
            has changed; null accepts any file.
    """

    name: str | None = None
    validation: str | None = None
    hub: str | None = None
    embedded: str | None = None
    text_field: str = "text"
    files: dict[str, str] | None = None

    def __post_init__(self):
        for field in ("name", "validation", "hub", "text_field"):
            if getattr(self, field) == "":  # a path from here, so every file of the working directory
                raise ValueError(f"data.corpus.{field} is empty")
        if self.name is None and self.hub is None:
            raise ValueError("data.corpus needs either `name`, or `hub` (with `embedded` as its stand-in)")

    def resolve(self, kind: str) -> str:
        """Return the corpus's name, given where the base came from (`hub`, `embedded` or `local`)."""
        if self.name is not None:
            return self.name
        chosen = self.embedded if kind == "embedded" else self.hub
        if chosen is None:
            raise ValueError(f"data.corpus has no `{kind}` entry, but the base model is {kind}")
        return chosen

    def recorded(self) -> "CorpusConfig":
        """Return the same text with absolute paths, and with the size and digest of each file in `files`.

        Raises:
            ValueError: a file is gone or differs from what `files` says.
        """
        absolute = {field: absolute_name(name) for field in ("name", "validation") if (name := getattr(self, field))}
        known, files = self.files or {}, {}
        for name in absolute.values():
            if kind(name) == "local":
                check_unchanged(name, known)
                if not Path(name).exists():
                    raise ValueError(f"corpus {name}: no such file")
                files[name] = known.get(name) or fingerprint(name)
        return replace(self, **absolute, files=files or None)


def documents(
    name: str,
    split: str,
    seed: int = 0,
    validation: str | None = None,
    text_field: str = "text",
    config: str | None = None,
) -> Iterator[Document]:
    """Iterate over the documents of one split (`train`, `validation` or `test`) of a corpus.

    split: a file also has the split `all`, which includes the held-out documents.
    config: the configuration of a hub dataset that has several.

    Raises:
        ValueError: the corpus or its split does not exist, or a line cannot be read (named as file:line).
    """
    if split != "train" and validation is not None:
        yield from documents(validation, _whole(validation), seed, text_field=text_field)
    elif name == EMBEDDED:
        index = 0
        while True:
            made = story(seed, index, split)
            yield Document(made.text, made.words, made.plot)
            index += 1
    elif is_file(name):
        if split not in SPLITS:
            raise ValueError(f"corpus {name}: split is {split!r}; of a file it must be one of {', '.join(SPLITS)}")
        for i, document in enumerate(file_documents(Path(name), text_field)):
            held_out = validation is None and i % HOLD_OUT == 0
            if split == "all" or held_out == (split != "train"):
                yield document
    else:
        yield from dataset_documents(name, "train" if split == "all" else split, text_field, config)


def _whole(validation: str) -> str:
    """Return the split that is read from a validation corpus; the endless corpus has a split of its own for this."""
    return "validation" if validation == EMBEDDED else "all"


def kind(name: str) -> Literal["embedded", "local", "hub"]:
    """Return whether a corpus is in the package, on this machine, or on the hub."""
    return "embedded" if name == EMBEDDED else "local" if is_file(name) or Path(name).is_dir() else "hub"


def is_file(name: str) -> bool:
    """Return whether a corpus's name means a file (which may not exist), not a directory or an id on the hub."""
    path = Path(name)
    return name != EMBEDDED and not path.is_dir() and (path.suffix in SUFFIXES or path.exists())


def absolute_name(name: str) -> str:
    """Return a corpus's name for use from any directory: the absolute path of a file or directory."""
    name = os.path.expanduser(name)
    return os.path.abspath(name) if kind(name) == "local" else name


def read_from(name: str, split: str, validation: str | None = None) -> str:
    """Describe what is really read for one split of a corpus.

    >>> read_from("stories", "validation"), read_from("/data/a.txt", "train"), read_from("a", "test", "/data/b.txt")
    ('stories (validation)', '/data/a.txt (all but every 50th document)', '/data/b.txt')
    """
    if split != "train" and validation is not None:
        name, split, validation = validation, _whole(validation), None
    name = absolute_name(name)
    if not is_file(name):
        return f"{name} ({'train' if split == 'all' else split})"
    if split == "all" or (split == "train" and validation is not None):
        return name
    return f"{name} ({'all but ' if split == 'train' else ''}every {HOLD_OUT}th document)"


def described(name: str, validation: str | None = None) -> str:
    """Describe what a run trains and validates on.

    >>> described("stories"), described("/data/a.txt")
    ('data stories (embedded)', 'data /data/a.txt, every 50th document held out for validation')
    """
    words = f"data {absolute_name(name)}" + ("" if kind(name) == "local" else f" ({kind(name)})")
    if validation is not None:
        return f"{words}, validation {absolute_name(validation)}"
    return words + (f", every {HOLD_OUT}th document held out for validation" if is_file(name) else "")


def check_unchanged(name: str, known: dict[str, str]) -> None:
    """Refuse a file that is gone or differs from its entry in `known` (path → fingerprint).

    Raises:
        ValueError: the file is gone or differs; the message gives both fingerprints.
    """
    said = known.get(name)
    if said is None:
        return
    if not Path(name).exists():
        raise ValueError(f"corpus {name}: no such file; the run read {said}")
    if (now := fingerprint(name)) != said:
        raise ValueError(
            f"corpus {name}: its text has changed since the run read it ({said} then, {now} now); name the text to "
            "read with --corpus (eval.py) or data.corpus.files=null (train.py)"
        )


def fingerprint(name: str) -> str:
    """Return the size and digest of a file or a directory's files; the digest reads 256 pieces of 1 MiB at most.

    >>> fingerprint("/dev/null")
    '0 bytes, blake2b e4a6a0577479b2b4'
    """
    path = Path(name)
    files = dataset_files(path) if path.is_dir() else [path]
    digest, total = hashlib.blake2b(digest_size=8), 0
    for file in files:
        size, pieces = file.stat().st_size, max(_PIECES // len(files), 1)
        digest.update(f"{file.relative_to(path)}:{size}".encode() if path.is_dir() else b"")
        with file.open("rb") as stream:
            for i in range(min(pieces, -(-size // _PIECE))):
                stream.seek(i * _PIECE if size <= pieces * _PIECE else (size - _PIECE) * i // max(pieces - 1, 1))
                digest.update(stream.read(_PIECE))
        total += size
    return f"{total:,} bytes, blake2b {digest.hexdigest()}"
