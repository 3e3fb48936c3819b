"""The Lightning data module: training blocks in a resumable order, validation blocks with documents and labels.

Shapes: `b` blocks of a batch, `t` position.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedTokenizerBase

from slms.data.corpora import CorpusConfig
from slms.data.stream import Corpus, Loader, StreamLoader, TokenStream
from slms.data.text import Blocks, BlockSpec, load_blocks


class BlockDataset(Dataset):
    """A dataset of blocks; indexing with a list returns a dict of int64 tensors [b, t], and `block_ids` [b]."""

    def __init__(self, blocks: Blocks):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks.input_ids)

    def __getitem__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        columns = {"input_ids": self.blocks.input_ids}
        if self.blocks.doc_ids is not None:
            columns["doc_ids"] = self.blocks.doc_ids
        columns |= {f"labels_{family}": classes for family, classes in self.blocks.labels.items()}
        batch = {name: torch.from_numpy(column[rows].astype(np.int64)) for name, column in columns.items()}
        return batch | {"block_ids": torch.tensor(rows)}


def text_digest(ids: np.ndarray) -> int:
    """Return a number that other token ids are unlikely to have."""
    return zlib.crc32(np.ascontiguousarray(ids).data)


class Batches(SequentialSampler):
    """Yields the rows of each batch, in order. Lightning replaces other kinds of samplers under `overfit_batches`."""

    data_source: list[list[int]]

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]  # rows of a batch, not one row
        return iter(self.data_source)


@dataclass
class BlockOrder(SequentialSampler):
    """Decides which blocks each step reads, as a function of (seed, position), so that a run can resume anywhere.

    Position s of the run reads block `permutation(seed, s // n)[s % n]`, so each pass over the n blocks has its own
    order, whatever the length of an epoch. The blocks of a global batch go to the ranks in turn.
    """

    n_blocks: int
    batch_size: int
    batches_per_epoch: int
    seed: int
    rank: int = 0
    world: int = 1
    epoch: int = 0
    done: int = 0

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]  # rows of a batch, not one row
        wide = self.batch_size * self.world
        for i in range(self.done, self.batches_per_epoch):
            start = (self.epoch * self.batches_per_epoch + i) * wide
            yield [self._block(s) for s in range(start + self.rank, start + wide, self.world)]

    def _block(self, position: int) -> int:
        number, offset = divmod(position, self.n_blocks)
        if getattr(self, "_pass", None) != number:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._pass, self._order = number, torch.randperm(self.n_blocks, generator=generator).tolist()
        return self._order[offset]


class ResumableLoader(DataLoader):
    """A loader whose state is (epoch, batches done), so that a resumed run continues exactly where it stopped.

    Args:
        dataset: the blocks.
        order: the order in which batches read them.
        taken: train on only this many batches of an epoch, the first ones; null takes all.
        repeat: read the batches of the first epoch in every epoch.
        kwargs: further arguments of `DataLoader`.
    """

    def __init__(
        self, dataset: BlockDataset, order: BlockOrder, taken: int | None = None, repeat: bool = False, **kwargs
    ):
        super().__init__(dataset, sampler=order, batch_size=None, generator=torch.Generator(), **kwargs)
        self.order, self._ids = order, dataset.blocks.input_ids
        self.taken, self.repeat = taken or len(order), repeat
        self._position = (order.epoch, order.done)
        self._resumed = True

    def __iter__(self):
        # The caller may stop at the last batch without asking for another, so nothing may wait for the end.
        epoch, done = self._position
        if not self._resumed and done > 0:
            epoch, done = epoch + 1, 0
        self.order.epoch, self.order.done, self._resumed = 0 if self.repeat else epoch, done, False
        for batch in super().__iter__():
            done += 1
            self._position = (epoch, done)
            yield batch

    @property
    def _shape(self) -> dict[str, int]:
        return {"blocks_per_batch": self.order.batch_size * self.order.world, "batches_per_epoch": len(self.order)}

    @cached_property
    def _text(self) -> int:
        return text_digest(self._ids)

    def state_dict(self) -> dict[str, int]:
        """Return the position after the last yielded batch; it is the same on every rank and for any number of them."""
        return dict(zip(("epoch", "done"), self._position, strict=True)) | self._shape | {"text": self._text}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `state`; the end of an epoch is the start of the next one.

        Raises:
            ValueError: the blocks have changed, or the batch of all ranks together has another size, so that positions
                mean other blocks.
        """
        epoch, done = state["epoch"], state["done"]
        if state.get("text", self._text) != self._text:
            raise ValueError(
                "the training text has changed since the checkpoint; a resumed run must read the same text"
            )
        if any(state.get(name, number) != number for name, number in self._shape.items()):
            raise ValueError(
                f"data.batch_size is {self.order.batch_size} on {self.order.world} process(es), {len(self.order)} "
                f"batches an epoch; a resumed run must keep batch_size × processes at {state['blocks_per_batch']} and "
                f"{state['batches_per_epoch']} batches an epoch"
            )
        self._position = (epoch + 1, 0) if done >= self.taken else (epoch, done)
        self._resumed = True


class TextData(L.LightningDataModule):
    """Token blocks of one corpus under one tokenizer.

    Args:
        corpus: the text.
        tokenizer: set by the command line to the tokenizer of the model's base.
        source: where the base came from (`hub`, `embedded`, `local`); picks between the corpus's `hub` and `embedded`.
        block_size: length of one block (a training example), in tokens.
        batch_size: number of blocks in one step on one device.
        train_tokens: number of tokens to prepare for training; they are tokenised before the first step and cached.
            Null reads a finite corpus whole.
        epoch_tokens: number of tokens in one epoch; null makes an epoch one pass over the prepared tokens.
        val_tokens: number of tokens to validate on.
        seed: seeds the order of the blocks and the embedded corpus's stories; by default 0, in train.py
            `seed_everything`.
        num_workers: number of loader processes; you need none, since blocks are in memory, unless text is streamed.
        stream: read and tokenise the training text while training, for corpora larger than memory. `train_tokens` is
            then used only to calibrate the conversion, and you must give `epoch_tokens`.
    """

    def __init__(
        self,
        corpus: CorpusConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        source: str = "local",
        block_size: int = 256,
        batch_size: int = 16,
        train_tokens: int | None = 4_000_000,
        epoch_tokens: int | None = None,
        val_tokens: int = 131_072,
        seed: int | None = None,
        num_workers: int = 0,
        stream: bool = False,
    ):
        super().__init__()
        if stream and (epoch_tokens is None or train_tokens is None):
            raise ValueError("data.stream needs data.epoch_tokens, and data.train_tokens for the calibration")
        checks: dict[str, int | None] = {"block_size": block_size, "batch_size": batch_size, "val_tokens": val_tokens}
        checks |= {"train_tokens": train_tokens, "epoch_tokens": epoch_tokens}
        for name, value in checks.items():
            if value is not None and value < (2 if name == "block_size" else 1):
                raise ValueError(f"data.{name} is {value}; it must be at least {2 if name == 'block_size' else 1}")
        self.corpus, self.tokenizer, self.source = corpus, tokenizer, source
        self.block_size, self.batch_size = block_size, batch_size
        self.train_tokens, self.epoch_tokens, self.val_tokens = train_tokens, epoch_tokens, val_tokens
        self.seed, self.num_workers, self.streams = seed or 0, num_workers, stream
        self.corpus_name = corpus.resolve(source)

    def _spec(self, split: str, n_tokens: int | None) -> BlockSpec:
        c = self.corpus
        corpus_seed = 0 if split != "train" else self.seed  # validation text is the same for every seed
        return BlockSpec(
            corpus=self.corpus_name,
            split=split,
            validation=c.validation,
            text_field=c.text_field,
            seed=corpus_seed,
            block_size=self.block_size,
            n_tokens=n_tokens,
            with_labels=split != "train",
        )

    def prepare_data(self) -> None:
        """Tokenise the text into the cache, once per machine."""
        for split in ("train", "validation"):
            self.blocks(split)

    def blocks(self, split: str) -> Blocks:
        """Load the blocks of `train`, `validation` or `test`."""
        assert self.tokenizer is not None  # linked from the model
        return load_blocks(
            self._spec(split, self.train_tokens if split == "train" else self.val_tokens), self.tokenizer
        )

    def is_cached(self) -> bool:
        """Return whether the cache holds all text as blocks, so that the corpus itself is not needed."""
        assert self.tokenizer is not None
        sizes = {"train": self.train_tokens, "validation": self.val_tokens}
        return not self.streams and all(self._spec(*item).path(self.tokenizer).exists() for item in sizes.items())

    def setup(self, stage: str) -> None:
        """Load the blocks from the cache."""
        if stage == "fit":
            self.train_blocks = self.blocks("train")
        self.val_blocks = self.blocks("validation")

    def calibration(self, n_tokens: int) -> torch.Tensor:
        """Return the first ⌈n_tokens / T⌉ training blocks, [b, t] int64."""
        rows = min(len(self.train_blocks.input_ids), -(-n_tokens // self.block_size))
        return torch.from_numpy(self.train_blocks.input_ids[:rows].astype(np.int64))

    def batches_per_epoch(self) -> int:
        """Return the number of batches of an epoch on each device."""
        _, world = self.rank_and_world
        n_blocks = len(self.train_blocks.input_ids)
        epoch_blocks = n_blocks if self.epoch_tokens is None else max(self.epoch_tokens // self.block_size, 1)
        batches = epoch_blocks // (self.batch_size * world)
        if batches == 0:
            raise ValueError(
                f"data.batch_size is {self.batch_size} on {world} device(s); an epoch holds only {epoch_blocks} blocks"
            )
        return batches

    @property
    def rank_and_world(self) -> tuple[int, int]:
        """Return this process's rank and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def trained_batches(self, batches: int) -> int:
        """Return how many of an epoch's `batches` are trained on under `--trainer.limit_train_batches`."""
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    @property
    def repeats(self) -> bool:
        """Return whether every epoch reads the batches of the first, as under `--trainer.overfit_batches`."""
        trainer: Any = self.trainer  # Lightning sets the option without declaring it
        return trainer is not None and trainer.overfit_batches > 0

    def train_dataloader(self) -> Loader:
        """Return the training batches in the resumable order, this rank's share."""
        rank, world = self.rank_and_world
        if self.streams:
            assert self.tokenizer is not None
            c = self.corpus
            corpus = Corpus(self.corpus_name, self.seed, c.validation, c.text_field)
            stream = TokenStream(corpus, self.tokenizer, self.batch_size, self.block_size, rank, world)
            batches = self.batches_per_epoch()
            return StreamLoader(stream, batches, self.num_workers, self.trained_batches(batches))
        n_blocks, batches = len(self.train_blocks.input_ids), self.batches_per_epoch()
        order = BlockOrder(n_blocks, self.batch_size, batches, self.seed, rank, world)
        taken, dataset = self.trained_batches(batches), BlockDataset(self.train_blocks)
        return ResumableLoader(dataset, order, taken, self.repeats, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Return the validation batches in order, every block once; each rank has a consecutive share."""
        rank, world = self.rank_and_world
        n_blocks = len(self.val_blocks.input_ids)
        rows = list(range(n_blocks * rank // world, n_blocks * (rank + 1) // world))
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return DataLoader(BlockDataset(self.val_blocks), sampler=Batches(batches), batch_size=None, num_workers=0)
