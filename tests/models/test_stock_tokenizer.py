"""A tokenizer is written under names that every version of transformers knows, and reads as it was."""

import json

import pytest
from transformers import AutoTokenizer, LlamaTokenizer

import slms
from slms.models.stock_tokenizer import write_tokenizer
from tests.tiny import word_tokenizer

TEXT = "<|user|> the cat sat <|end|>"


def tokenizer():
    """One that has further special tokens and a chat template."""
    made = word_tokenizer(["the", "cat", "sat"])
    made.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|end|>"]})
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return made


def llama():
    """One of a family's own class."""
    return LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, "▁the": 3, "▁cat": 4}, merges=[])


@pytest.mark.parametrize("make", [tokenizer, llama, lambda: slms.load_base("stories-1m").tokenizer])
def test_the_names_are_those_of_every_version_and_nothing_is_lost(make, tmp_path):
    made = make()
    made.save_pretrained(tmp_path / "as-it-is")
    read = AutoTokenizer.from_pretrained(tmp_path / "as-it-is")  # which notes where it was read from
    write_tokenizer(read, tmp_path / "new")
    config = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and not config["clean_up_tokenization_spaces"]
    assert not {"is_local", "local_files_only", "backend", "extra_special_tokens"} & config.keys()
    again = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert again(TEXT).input_ids == read(TEXT).input_ids
    assert again.all_special_tokens == read.all_special_tokens and again.chat_template == read.chat_template
    assert again.special_tokens_map == read.special_tokens_map
    if make is tokenizer:
        assert config["additional_special_tokens"] == ["<|user|>", "<|end|>"]
        assert again.tokenize(TEXT)[0] == "<|user|>"
