"""Turns documents into token blocks on disk.

Documents are tokenised, joined with the tokenizer's separator and cut into blocks of T tokens. Training blocks hold
only ids; validation blocks also hold each token's document and labels (`slms.data.labels`).

Shapes: `b` blocks, `t` position in a block.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from slms.data import labels as lb
from slms.data.corpora import HOLD_OUT, Document, documents, is_file, read_from
from slms.data.dataset import dataset_files
from slms.data.files import SEPARATED
from slms.files import cache_dir, write_npz

logger = logging.getLogger(__name__)


class Blocks(NamedTuple):
    """Token blocks.

    Attributes:
        input_ids: token ids [b, t].
        doc_ids: the index of each token's document, [b, t]; None in training blocks.
        labels: family → the class of each token, [b, t], −1 if unknown; empty in training blocks.
        label_names: family → class names.
    """

    input_ids: np.ndarray
    doc_ids: np.ndarray | None
    labels: dict[str, np.ndarray]
    label_names: dict[str, tuple[str, ...]]

    @property
    def n_documents(self) -> int | None:
        """The number of documents; None for training blocks."""
        return None if self.doc_ids is None else int(self.doc_ids.max()) + 1

    def first(self, n: int) -> "Blocks":
        """Return the first n blocks."""
        documents = None if self.doc_ids is None else self.doc_ids[:n]
        labels = {family: classes[:n] for family, classes in self.labels.items()}
        return Blocks(self.input_ids[:n], documents, labels, self.label_names)


class BlockSpec(NamedTuple):
    """The specification of a set of blocks; its digest names the cache file."""

    corpus: str
    split: str = "train"
    validation: str | None = None
    text_field: str = "text"
    seed: int = 0
    block_size: int = 256
    n_tokens: int | None = None
    with_labels: bool = False

    def digest(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return a name for these blocks that changes with the text, the tokenizer and the labelling."""
        made = [*self, _tokenizer_digest(tokenizer), lb.VERSION, _grammar_digest()]
        path = Path(self.source)
        for file in dataset_files(path) if path.is_dir() else [path] if path.is_file() else []:
            stat = file.stat()
            made += [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
        return hashlib.sha256(repr(made).encode()).hexdigest()[:20]

    @property
    def source(self) -> str:
        """The corpus that is read: the validation corpus if there is one and the blocks are not for training."""
        return self.validation if self.split != "train" and self.validation else self.corpus

    @property
    def read_from(self) -> str:
        """Describe what is read."""
        return read_from(self.corpus, self.split, self.validation)

    def path(self, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Return the path of these blocks in the cache, whether they exist or not."""
        return cache_dir() / "blocks" / f"{self.digest(tokenizer)}.npz"


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items())
    state = repr((vocabulary, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer("a b, c.").input_ids))
    return hashlib.sha256(state.encode()).hexdigest()


def _grammar_digest() -> str:
    files = (Path(__file__).parent / "stories").rglob("*")
    sources = sorted(path for path in files if path.suffix in (".py", ".txt"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def load_blocks(spec: BlockSpec, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """Load the blocks of `spec` from the cache, or make and cache them; say on stderr if the text is too short.

    Raises:
        ValueError: less than one block is asked for or in the corpus, or its file changed while it was read.
    """
    path = spec.path(tokenizer)
    if not path.exists():
        logger.info("tokenising %s to %s tokens", spec.read_from, spec.n_tokens or "all")
        arrays = _make_arrays(spec, tokenizer)
        if spec.path(tokenizer) != path:
            raise ValueError(f"corpus {spec.corpus}: the file changed or vanished while it was read; start again")
        write_npz(path, **arrays)
        del arrays  # otherwise the text would be in memory twice
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    names = json.loads(str(arrays["label_names"]))
    n_tokens, wanted = arrays["input_ids"].size, spec.n_tokens or 0
    if n_tokens < wanted - wanted % spec.block_size:
        say_shortage(spec.read_from, n_tokens, wanted)
    families = {family: arrays[f"labels_{family}"] for family in names}
    return Blocks(
        arrays["input_ids"], arrays.get("doc_ids"), families, {family: tuple(v) for family, v in names.items()}
    )


def _make_arrays(spec: BlockSpec, tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    if spec.n_tokens is not None and spec.n_tokens < spec.block_size:
        raise ValueError(
            f"{spec.read_from}: the number of tokens asked for is {spec.n_tokens:,}; it must be at least one block "
            f"({spec.block_size} tokens)"
        )
    source = documents(spec.corpus, spec.split, spec.seed, spec.validation, spec.text_field)
    labeller = lb.Labeller(tokenizer) if spec.with_labels else None
    columns: dict[str, tuple[np.dtype, bytearray]] = {}  # they grow in place, so the text is in memory once
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
        raise ValueError(f"{spec.read_from}: {_too_short(spec, total, n_documents)}")

    arrays = {
        name: np.frombuffer(column, dtype)[: n_blocks * spec.block_size].reshape(n_blocks, spec.block_size)
        for name, (dtype, column) in columns.items()
    }
    names: dict[str, tuple[str, ...]] = {}
    if labeller is not None:
        arrays["labels_frequency"] = lb.frequency_bins(arrays["input_ids"])
        names = labeller.names() | {"frequency": lb.FREQUENCY_BINS}
        if "domain" not in names:
            del arrays["labels_domain"]
    return arrays | {"label_names": np.asarray(json.dumps(names))}


@cache
def say_shortage(source: str, found: int, wanted: int, unit: str = "tokens") -> None:
    """Say on stderr, once and only in the first process, that there is less text than requested."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        logger.warning(f"{source}: {found:,} of the {wanted:,} {unit} asked for; there is no more text")


def _too_short(spec: BlockSpec, n_tokens: int, n_documents: int) -> str:
    """Explain why a corpus gives no block and what would help."""
    found = f"{n_tokens:,} tokens in {n_documents:,} documents, less than one block ({spec.block_size} tokens)"
    if spec.source == spec.validation or not is_file(spec.corpus):
        return found
    whole = sum(1 for _ in documents(spec.corpus, "all", text_field=spec.text_field))
    holds = "is one document" if whole == 1 else f"holds {whole:,} documents"
    parted = f" ({SEPARATED})" if Path(spec.corpus).suffix == ".txt" else ""
    held = f"; every {HOLD_OUT}th, the first included, is held out for validation" if spec.split != "all" else ""
    advice = "; name a validation corpus (data.corpus.validation, --validation)" if held else ""
    return f"{found}: the file {holds}{parted}{held}{advice}"


def _portion(source: Iterator[Document], documents: int = 256, characters: int = 1 << 22) -> list[Document]:
    """Take the next documents, at most so many, and fewer if they are long, so that memory stays bounded."""
    portion: list[Document] = []
    length = 0
    for document in source:
        portion.append(document)
        length += len(document.text)
        if len(portion) == documents or length >= characters:
            break
    return portion


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of one document with its separator."""
    return next(_encode([Document(text)], tokenizer, False)).ids


class _Encoded(NamedTuple):
    ids: list[int]
    spans: list[tuple[int, int]]
    """the span of characters of each token; empty unless requested"""


def _encode(batch: list[Document], tokenizer: PreTrainedTokenizerBase, with_spans: bool) -> Iterator[_Encoded]:
    """Yield the token ids of each document with a separator: the tokenizer's own prefix, else eos at the end."""
    texts = [document.text for document in batch]
    out = tokenizer(texts, return_offsets_mapping=with_spans, return_attention_mask=False, verbose=False)
    for i, ids in enumerate(out["input_ids"]):
        spans = out["offset_mapping"][i] if with_spans else []
        starts_with_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        if not starts_with_bos and tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
            spans = [*spans, (0, 0)] if with_spans else []
        yield _Encoded(ids, spans)
