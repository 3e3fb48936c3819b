from lightning.pytorch.strategies import StrategyRegistry
from transformers import LlamaConfig, LlamaForCausalLM

from slms.lit import strategies


def test_names_are_known_to_lightning():
    strategies.register()
    assert {"ddp", "fsdp2", "fsdp2_sharded"} <= set(StrategyRegistry.available_strategies())
    assert StrategyRegistry.get("fsdp2_sharded")._save_distributed_checkpoint
    assert not StrategyRegistry.get("fsdp2")._save_distributed_checkpoint


def test_a_model_that_is_not_sharded_is_whole():
    """Sharded ones are tested by training them, in tests/test_distributed.py."""
    net = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    assert strategies.whole(net) is net
