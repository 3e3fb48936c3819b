"""Writes a tokenizer so that other versions of transformers, and what is built on them, open it.

transformers 5 writes names that no earlier version knows: the class `TokenizersBackend`, and a list of further special
tokens under a key where transformers 4 expects a mapping. A family's own class builds parts of the tokenizer anew, each
version in its way. All of them take `PreTrainedTokenizerFast` from `tokenizer.json` as it is.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from slms.files import write_atomic
from slms.models.directory import read_object

CLASS = "PreTrainedTokenizerFast"
_LEFT_OVER = ("is_local", "local_files_only", "backend")
"""What transformers 5 notes about how it read a tokenizer; it says nothing about the tokenizer."""


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a tokenizer's files into a directory; one that has no `tokenizer.json` keeps its class."""
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    config = {key: value for key, value in read_object(file).items() if key not in _LEFT_OVER}
    if (directory / "tokenizer.json").is_file():
        config["tokenizer_class"] = CLASS
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # Its default is not the same in all versions.
    config.setdefault("clean_up_tokenization_spaces", bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)))
    write_atomic(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
