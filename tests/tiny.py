"""Models and tokenizers that are built and run in milliseconds."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoConfig, PreTrainedTokenizerFast


def tiny_config(vocab_size: int, num_layers: int = 2, **more) -> GPTNeoConfig:
    """GPT-Neo with global attention in every layer, d_model 8; `more` goes to transformers."""
    shape = {"hidden_size": 8, "num_heads": 2, "max_position_embeddings": 64} | more
    attention = [[["global"], num_layers]]
    return GPTNeoConfig(vocab_size=vocab_size, num_layers=num_layers, attention_types=attention, **shape)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token for each word, numbered from 1; 0 is `<eos>`, and whatever is no word."""
    vocabulary = {"<eos>": 0, **{word: i + 1 for i, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", model_max_length=64)
