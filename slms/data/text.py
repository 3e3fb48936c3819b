"""Corpora by name → documents → token blocks on disk.

A corpus is one string: `stories` (embedded), a file (`.txt`, `.jsonl`, `.parquet`), or a Hugging Face dataset id.
Documents are tokenised, joined with the tokenizer's separator and cut into blocks of T tokens; training blocks hold
ids only, validation blocks also the document and the labels of each token (`slms.data.labels`).

Shapes: `b` blocks, `t` position in a block.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from slms.data import labels as lb
from slms.data.files import SUFFIXES, file_texts, text_of
from slms.data.stories import story
from slms.files import cache_dir, write_npz

logger = logging.getLogger(__name__)

EMBEDDED = "stories"
HOLD_OUT = 50  # without a validation corpus, every 50th document of a file is held out


@dataclass(frozen=True)
class CorpusConfig:
    """Which text to read.

    Args:
        name: `stories` (embedded), a `.txt`/`.jsonl`/`.parquet` file, or a Hugging Face dataset id; wins over `hub`.
        validation: a second corpus to validate on; by default the corpus's own validation split, and for a file
            every 50th document, which training then leaves out.
        hub: with `embedded`, in place of `name`: the corpus to use when the base model comes from the hub.
        embedded: the stand-in to use when the base model is the embedded one.
        text_field: the field holding the text in JSON lines, parquet and hub corpora.
    """

    name: str | None = None
    validation: str | None = None
    hub: str | None = None
    embedded: str | None = None
    text_field: str = "text"

    def __post_init__(self):
        if self.name is None and self.hub is None:
            raise ValueError("data.corpus needs either `name`, or `hub` (with `embedded` as its stand-in)")

    def resolve(self, kind: str) -> str:
        """The corpus's name, given where the base came from (`hub`, `embedded` or `local`)."""
        if self.name is not None:
            return self.name
        chosen = self.embedded if kind == "embedded" else self.hub
        if chosen is None:
            raise ValueError(f"data.corpus has no `{kind}` entry, but the base model is {kind}")
        return chosen


class Document(NamedTuple):
    """One text; `words` and `domain` are known for the embedded corpus only."""

    text: str
    words: list | None = None
    domain: str | None = None


class Blocks(NamedTuple):
    """Token blocks.

    Attributes:
        input_ids: [b, t] token ids.
        doc_ids: [b, t] index of the token's document, or None in training blocks.
        labels: family → [b, t] class of each token, −1 where unknown; empty in training blocks.
        label_names: family → class names.
    """

    input_ids: np.ndarray
    doc_ids: np.ndarray | None
    labels: dict[str, np.ndarray]
    label_names: dict[str, tuple[str, ...]]


def documents(
    name: str,
    split: str,
    seed: int = 0,
    validation: str | None = None,
    text_field: str = "text",
    config: str | None = None,
):
    """Iterate over the documents of one split (`train`, `validation` or `test`) of a corpus.

    config: of a hub dataset that has several.

    Raises:
        ValueError: no such corpus, an unreadable line (with file:line), or a split that the corpus does not have.
    """
    if split != "train" and validation is not None:
        yield from documents(validation, "all", seed, text_field=text_field)
    elif name == EMBEDDED:
        index = 0
        while True:
            made = story(seed, index, split)
            yield Document(made.text, made.words, made.plot)
            index += 1
    elif (path := Path(name)).suffix in SUFFIXES or path.exists():
        for i, text in enumerate(file_texts(path, text_field)):
            held_out = validation is None and i % HOLD_OUT == 0
            if split == "all" or held_out == (split != "train"):
                yield Document(text)
    else:
        for text in _hub_texts(name, "train" if split == "all" else split, text_field, config):
            yield Document(text)


def hub_dataset(name: str, split: str, config: str | None = None):
    """A split of a hub corpus, or of a directory in its form, as a stream: no more is downloaded than is read.

    Raises:
        ValueError: no such corpus, split or configuration, or the hub cannot be reached.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except ValueError as error:
        raise ValueError(f"corpus {name!r}, split {split!r}: {error}") from None
    except OSError as error:
        raise _unreachable(name, error) from None


def _hub_texts(name: str, split: str, text_field: str, config: str | None) -> Iterator[str]:
    try:
        for row in hub_dataset(name, split, config):
            yield text_of(row, text_field, name)
    except OSError as error:  # lost on the way
        raise _unreachable(name, error) from None


def _unreachable(name: str, error: OSError) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(f"corpus {name!r} is no file here and the hub cannot be reached: {reason}")


class BlockSpec(NamedTuple):
    """What a set of blocks is made from; its digest names the cache file."""

    corpus: str
    split: str = "train"
    validation: str | None = None
    text_field: str = "text"
    seed: int = 0
    block_size: int = 256
    n_tokens: int | None = None
    with_labels: bool = False

    def digest(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """A name for these blocks that changes with the text, the tokenizer and the labelling."""
        source = self.validation if self.split != "train" and self.validation else self.corpus
        path = Path(source)
        made = [*self, _tokenizer_digest(tokenizer), lb.VERSION, _grammar_digest()]
        if path.is_file():
            stat = path.stat()
            made += [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        return hashlib.sha256(repr(made).encode()).hexdigest()[:20]


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items())
    state = repr((vocabulary, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer("a b, c.").input_ids))
    return hashlib.sha256(state.encode()).hexdigest()


def _grammar_digest() -> str:
    sources = sorted((Path(__file__).parent / "stories").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def load_blocks(spec: BlockSpec, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """The blocks of `spec`, from the cache or made now and cached.

    Raises:
        ValueError: the corpus holds less than one block of text, or its file changed while it was read.
    """
    digest = spec.digest(tokenizer)
    path = cache_dir() / "blocks" / f"{digest}.npz"
    if not path.exists():
        logger.info("tokenising %s (%s) to %s tokens", spec.corpus, spec.split, spec.n_tokens or "all")
        arrays = _make_arrays(spec, tokenizer)
        if spec.digest(tokenizer) != digest:
            raise ValueError(f"corpus {spec.corpus}: the file changed or vanished while it was read; start again")
        write_npz(path, **arrays)
        del arrays  # or the text would be in memory twice
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    names = json.loads(str(arrays["label_names"]))
    families = {family: arrays[f"labels_{family}"] for family in names}
    return Blocks(
        arrays["input_ids"], arrays.get("doc_ids"), families, {family: tuple(v) for family, v in names.items()}
    )


def _make_arrays(spec: BlockSpec, tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    source = documents(spec.corpus, spec.split, spec.seed, spec.validation, spec.text_field)
    labeller = lb.Labeller(tokenizer) if spec.with_labels else None
    columns: dict[str, tuple[np.dtype, bytearray]] = {}  # that grow in place: the text is in memory once
    total, n_documents = 0, 0

    def add(name: str, values: np.ndarray) -> None:
        columns.setdefault(name, (values.dtype, bytearray()))[1].extend(values.tobytes())

    dtype = np.uint16 if len(tokenizer) < 2**16 else np.uint32
    while spec.n_tokens is None or total < spec.n_tokens:
        batch = _portion(source)
        if not batch:
            break
        for document, encoded in zip(batch, _encode(batch, tokenizer, spec.with_labels), strict=True):
            if spec.n_tokens is not None and total >= spec.n_tokens:
                break
            add("input_ids", np.asarray(encoded.ids, dtype=dtype))
            total += len(encoded.ids)
            if labeller is not None:
                add("doc_ids", np.full(len(encoded.ids), n_documents, dtype=np.int32))
                for family, classes in labeller(document, encoded.ids, encoded.spans).items():
                    add(f"labels_{family}", classes)
            n_documents += 1
    n_blocks = min(total, spec.n_tokens or total) // spec.block_size
    if n_blocks == 0:
        raise ValueError(
            f"corpus {spec.validation if spec.split != 'train' and spec.validation else spec.corpus!r}, split "
            f"{spec.split!r}: {total} tokens of text, less than one block of data.block_size ({spec.block_size})"
        )

    arrays = {
        name: np.frombuffer(column, dtype)[: n_blocks * spec.block_size].reshape(n_blocks, spec.block_size)
        for name, (dtype, column) in columns.items()
    }
    names: dict[str, tuple[str, ...]] = {}
    if labeller is not None:
        arrays["labels_frequency"] = lb.frequency_bins(arrays["input_ids"])
        names = labeller.names() | {"frequency": lb.FREQUENCY_BINS}
    return arrays | {"label_names": np.asarray(json.dumps(names))}


def _portion(source: Iterator[Document], documents: int = 256, characters: int = 1 << 22) -> list[Document]:
    """The next documents, at most so many, fewer where they are long, so that memory stays bounded."""
    portion: list[Document] = []
    length = 0
    for document in source:
        portion.append(document)
        length += len(document.text)
        if len(portion) == documents or length >= characters:
            break
    return portion


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of one document with its separator."""
    return next(_encode([Document(text)], tokenizer, False)).ids


class _Encoded(NamedTuple):
    ids: list[int]
    spans: list[tuple[int, int]] | None


def _encode(batch: list[Document], tokenizer: PreTrainedTokenizerBase, with_spans: bool) -> Iterator[_Encoded]:
    """Token ids of each document with its separator: what the tokenizer itself puts in front, else eos behind."""
    texts = [document.text for document in batch]
    out = tokenizer(texts, return_offsets_mapping=with_spans, return_attention_mask=False, verbose=False)
    for i, ids in enumerate(out["input_ids"]):
        spans = out["offset_mapping"][i] if with_spans else None
        starts_with_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        if not starts_with_bos and tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
            spans = [*spans, (0, 0)] if with_spans else None
        yield _Encoded(ids, spans)
