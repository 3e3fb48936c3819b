"""Defines special tokens and trains the tokenizer of the embedded model: a byte-level BPE on the story corpus.

    python -m slms.data.tokenizer --out DIR --vocab 2048 --stories 20000

It can encode any text, since the vocabulary has all 256 bytes, and decodes it to itself. `<|endoftext|>` is id 0 and
serves as begin, end and unknown token. The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slms.data.stories import story

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
MAX_LENGTH = 2048

logger = logging.getLogger(__name__)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids, ascending, of the tokens that begin, end and pad a text: what they activate says nothing about it."""
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return torch.tensor(sorted(ids), dtype=torch.int64)


def train(vocab: int = 2048, stories: int = 20_000, seed: int = 0):
    """Train a transformers fast tokenizer on the first `stories` training stories of stream `seed`.

    Raises ValueError if `vocab` cannot hold the 256 bytes and the end token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab < 257:
        raise ValueError(f"--vocab is {vocab}; it must be at least 257 (256 bytes and {END_OF_TEXT}).")
    if stories < 1:
        raise ValueError(f"--stories is {stories}; it must be at least 1.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((story(seed, index).text for index in range(stories)), trainer, length=stories)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def main(argv: list[str] | None = None) -> None:
    """Train a tokenizer and save it as a transformers directory."""
    parser = argparse.ArgumentParser(prog="python -m slms.data.tokenizer", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the two tokenizer files")
    parser.add_argument("--vocab", type=int, default=2048, help="number of tokens")
    parser.add_argument("--stories", type=int, default=20_000, help="number of training stories")
    args = parser.parse_args(argv)
    try:
        tokenizer = train(args.vocab, args.stories)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    tokenizer.save_pretrained(args.out)
    logger.info("wrote %s tokens to %s", len(tokenizer), args.out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
