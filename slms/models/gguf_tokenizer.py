"""Translates tokenizers between Hugging Face and GGUF: byte-level BPE (`gpt2`) and SentencePiece-like BPE (`llama`)."""

from __future__ import annotations

import functools
import json
import logging
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> PreTokenizer:
    words = Split(Regex(_WORDS.format(digits=digits) + _SPACES), behavior="isolated", invert=False)
    return Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])


PRE: dict[str, PreTokenizer] = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "llama-bpe": _split("{1,3}"),
    "qwen2": _split(""),
}
"""llama.cpp's name of a way to split text before BPE (`tokenizer.ggml.pre`) → the same in `tokenizers`."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""


class Vocabulary(NamedTuple):
    """A tokenizer as GGUF stores it."""

    model: str
    """`gpt2` or `llama`"""
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    """of `gpt2`: pairs, best first"""
    scores: list[float] | None
    """of `llama`: the higher, the sooner a pair is merged into this token"""
    space_prefix: bool
    add_bos: bool


@functools.cache
def _warn_once(n_bytes: int) -> None:
    """Warn once, though one command may write several files with the same tokenizer."""
    logger.warning(
        "the tokenizer has %d of 256 byte tokens; at a character that it does not know, llama.cpp ends the process",
        n_bytes,
    )


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """Return a tokenizer as GGUF stores it, filled up to `size` tokens.

    Raises ValueError for a tokenizer that is not BPE, or that splits text in a way that is not in `PRE`.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"the tokenizer's model is {model['type']}; only BPE can be written as GGUF.")
    ids = {token: i for token, i in tokenizer.get_vocab().items()}
    if max(ids.values()) >= size:
        raise ValueError(f"the tokenizer has token {max(ids.values())}, beyond the model's vocabulary of {size}.")
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, i in ids.items():
        tokens[i], types[i] = token, NORMAL
    for added in content["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    add_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    if not _is_sentencepiece(content):
        return Vocabulary("gpt2", _name(content["pre_tokenizer"]), tokens, types, merges, None, False, add_bos)
    rank = {"".join(pair.split(" ")): -float(i + 1) for i, pair in reversed(list(enumerate(merges)))}
    scores = [rank.get(token, 0.0 if kind != NORMAL else -1e6) for token, kind in zip(tokens, types, strict=True)]
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i], scores[i] = BYTE, 0.0
    if types.count(BYTE) < 256:
        _warn_once(types.count(BYTE))
    if tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    prefix = any(part["type"] == "Prepend" for part in _parts(content["normalizer"], "normalizers"))
    prefix |= any(part.get("prepend_scheme") in ("first", "always") for part in _pre_tokenizers(content))
    return Vocabulary("llama", "default", tokens, types, None, scores, prefix, add_bos)


def with_pre(tokenizer: PreTrainedTokenizerBase, pre: str | None) -> PreTrainedTokenizerBase:
    """Make a byte-level tokenizer that transformers has read from GGUF split text as llama.cpp does.

    transformers reads `tokenizer.ggml.pre` for few architectures; SmolLM2's numbers would become other tokens.
    """
    if pre in PRE:
        tokenizer.backend_tokenizer.pre_tokenizer = PRE[pre]
    elif pre is not None:
        logger.warning(
            "the tokenizer splits text as `%s`, which is unknown here; some words may be split otherwise", pre
        )
    return tokenizer


def _is_sentencepiece(content: dict[str, Any]) -> bool:
    """Whether spaces are written as `▁`, not as bytes."""
    return any(part.get("content") == "▁" for part in _parts(content["normalizer"], "normalizers")) or any(
        part["type"] == "Metaspace" for part in _pre_tokenizers(content)
    )


def _pre_tokenizers(content: dict[str, Any]) -> list[dict[str, Any]]:
    return _parts(content["pre_tokenizer"], "pretokenizers")


def _parts(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    return [] if step is None else step.get(key) or [step]


def _name(step: dict[str, Any] | None) -> str:
    """Return llama.cpp's name of a way to split text."""
    for name, known in PRE.items():
        empty = Tokenizer(BPE())
        empty.pre_tokenizer = known
        if _what_counts(json.loads(empty.to_str())["pre_tokenizer"]) == _what_counts(step):
            return name
    raise ValueError(f"the tokenizer splits text in a way that is none of llama.cpp's {', '.join(PRE)}.")


def _what_counts(step: Any) -> Any:
    """A pre-tokenizer without offsets, which no token depends on."""
    if isinstance(step, dict):
        return {key: _what_counts(value) for key, value in step.items() if key != "trim_offsets"}
    return [_what_counts(value) for value in step] if isinstance(step, list) else step
