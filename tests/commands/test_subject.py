"""What a command measures when nobody says how."""

import pytest

from slms.commands.subject import chosen_text, open_subject
from slms.models.base import BaseConfig, init_base, load_base
from slms.models.io import save_model


def test_blocks_are_no_longer_than_the_context_unless_asked_for(tmp_path):
    base = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    base.model.config.max_position_embeddings = 32
    base.model.transformer.wpe.weight.data = base.model.transformer.wpe.weight.data[:32]
    save_model(base.model, base.tokenizer, tmp_path)
    assert open_subject(str(tmp_path), n_tokens=512).blocks.input_ids.shape == (16, 32)
    with pytest.raises(ValueError, match=r"--block_size 64: .* at most 32"):
        open_subject(str(tmp_path), n_tokens=512, block_size=64)


RUN = {"corpus": "mine.jsonl", "validation": "dev.jsonl", "text_field": "story", "block_size": 128, "n_tokens": 4096}


@pytest.mark.parametrize(
    ("own", "asked", "chosen"),
    [
        ({}, {}, ("stories", None, "validation", "text", 256, 131_072)),
        (RUN, {}, ("mine.jsonl", "dev.jsonl", "validation", "story", 128, 4096)),
        (RUN, {"split": "train", "n_tokens": 10}, ("mine.jsonl", "dev.jsonl", "train", "story", 128, 10)),
        (RUN, {"corpus": "other.txt"}, ("other.txt", None, "validation", "text", 128, 4096)),
        (RUN, {"validation": "other.txt"}, ("mine.jsonl", "other.txt", "validation", "story", 128, 4096)),
        ({"corpus": "mine.jsonl"}, {"block_size": 32}, ("mine.jsonl", None, "validation", "text", 32, 131_072)),
    ],
)
def test_what_was_asked_for_goes_before_the_runs_text_and_that_before_the_defaults(own, asked, chosen):
    model = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    keys = ("corpus", "validation", "split", "text_field", "block_size", "n_tokens")
    assert chosen_text(model, own, **asked) == dict(zip(keys, chosen, strict=True))


@pytest.mark.parametrize("flag", ["block_size", "n_tokens"])
def test_no_text_is_refused(flag):
    model = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    with pytest.raises(ValueError, match=f"--{flag} 0: it must be at least 1"):
        chosen_text(model, {}, **{flag: 0})
