import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from slms.models.checksums import CHECKSUMS
from slms.models.io import load_model, save_model


@pytest.fixture
def model(tmp_path):
    net = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    return save_model(net, None, tmp_path / "run" / "model")


def flip(model):
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (model / "model.safetensors").write_bytes(content)


def test_a_saved_model_passes(model):
    load_model(model)
    assert (model / CHECKSUMS).read_text().endswith("  model.safetensors\n")


def test_a_flipped_bit_is_refused_and_the_run_s_checkpoint_offered(model):
    flip(model)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged.*SHA256SUMS") as error:
        load_model(model)
    assert "Resume" not in str(error.value)
    (model.parent / "checkpoints").mkdir()
    (model.parent / "checkpoints" / "last.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"Resume from .*checkpoints/last.ckpt to write it again"):
        load_model(model)


def test_without_sums_nothing_is_known(model):
    (model / CHECKSUMS).unlink()
    flip(model)
    load_model(model)


def test_sums_that_are_no_text_are_refused(model):
    (model / CHECKSUMS).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no list of checksums"):
        load_model(model)
