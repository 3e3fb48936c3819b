"""Configurations of models that are built and run in milliseconds."""

from transformers import GPTNeoConfig


def tiny_config(vocab_size: int, num_layers: int = 2, **more) -> GPTNeoConfig:
    """GPT-Neo with global attention in every layer, d_model 8; `more` goes to transformers."""
    shape = {"hidden_size": 8, "num_heads": 2, "max_position_embeddings": 64} | more
    attention = [[["global"], num_layers]]
    return GPTNeoConfig(vocab_size=vocab_size, num_layers=num_layers, attention_types=attention, **shape)
