"""What a command measures when nobody says how."""

import pytest

from slms.commands.subject import open_subject
from slms.models.base import BaseConfig, load_base
from slms.models.io import save_model


def test_blocks_are_no_longer_than_the_context_unless_asked_for(tmp_path):
    base = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    base.model.config.max_position_embeddings = 32
    base.model.transformer.wpe.weight.data = base.model.transformer.wpe.weight.data[:32]
    save_model(base.model, base.tokenizer, tmp_path)
    assert open_subject(str(tmp_path), n_tokens=512).blocks.input_ids.shape == (16, 32)
    with pytest.raises(ValueError, match=r"--block_size 64: .* at most 32"):
        open_subject(str(tmp_path), n_tokens=512, block_size=64)
