"""Decides where a run's model and text come from, prints it in one line, and records it for use from any directory."""

import os
from typing import Any

from jsonargparse import Namespace

from slms.data.corpora import CorpusConfig, described
from slms.data.dataset import is_cached
from slms.data.module import TextData
from slms.models.from_gguf import PACKAGED
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED, BaseConfig, Resolved, as_base, local_tokenizer, looks_like_path, resolve


def settle(config: Any) -> Resolved:
    """Decide hub, embedded or local for `config.model.base` and `config.data` together; print it; write it back.

    It writes back absolute paths and digests of the text's files, so that a reader of the run's config.yaml finds the
    same model and the same text, or learns that they are gone.

    Raises:
        ValueError: a name is not valid, or the text is not the one that the config records.
        OSError: a strict source is not available.
    """
    base = as_base(config.model.base)
    corpus = CorpusConfig(**vars(config.data.corpus)).recorded()
    resolved = resolve(base, lambda: _at_hand(corpus, base, config.data))
    config.data.corpus = Namespace(**vars(corpus))
    config.model.base.source = config.data.source = resolved.kind
    if resolved.kind == "local" and resolved.name not in PACKAGED:
        config.model.base.name = _absolute(resolved.name)
    versus = config.model.get("versus")
    if versus is not None and versus not in EMBEDDED | PACKAGED and looks_like_path(versus):
        config.model.versus = _absolute(versus)
    if base.tokenizer is not None and base.tokenizer not in EMBEDDED | PACKAGED and looks_like_path(base.tokenizer):
        config.model.base.tokenizer = _absolute(base.tokenizer)
    print(f"{resolved.note}; {described(corpus.resolve(resolved.kind), corpus.validation)}", flush=True)
    return resolved


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _at_hand(corpus: CorpusConfig, base: BaseConfig, data: Any) -> bool:
    """Whether the corpus of a hub base needs no network, because it is no hub corpus or is in a local cache."""
    if corpus.name is not None or corpus.hub is None or is_cached(corpus.hub):
        return True
    tokenizer = local_tokenizer(base.tokenizer or base.hub or "")
    if tokenizer is None:
        return False
    sizes = ("block_size", "train_tokens", "epoch_tokens", "val_tokens", "seed", "stream")
    given = {name: data[name] for name in sizes if name in data}
    return TextData(corpus, read_tokenizer(tokenizer), "hub", **given).is_cached()
