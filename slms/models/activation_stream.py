"""Yields the activations of a frozen language model as shuffled training batches, in an order a run resumes exactly.

The token blocks come in chunks. Each chunk's activations fill one of three preallocated slots. A random half of its
rows is used in the chunk's own period and the other half in the next, so every batch mixes two chunks and nothing is
moved. Meanwhile a second thread fills the third slot. A period depends on only two chunks, so a resumed run computes
those two again and continues where it stopped; checkpoints hold no activations.

Shapes: b blocks, t position, n tokens (rows), d width of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from slms.data.corpora import CorpusConfig
from slms.data.module import BlockOrder, TextData, text_digest
from slms.data.tokenizer import special_ids
from slms.models.collect import ActivationCache, Chunk, Collector
from slms.models.pair import Models
from slms.models.sites import Site
from slms.models.weights import model_digest

SLOTS = 3  # the previous chunk, the current one, and the next


@dataclass(frozen=True)
class BufferConfig:
    """Options for gathering activations into batches.

    Args:
        batch_size: number of tokens of one training step on one device.
        chunk_tokens: number of tokens gathered at a time, at most those of the text; each batch mixes two chunks.
        lm_batch_size: number of blocks in one forward pass of the language model.
        max_norm: leave out tokens whose activation norm exceeds this many median norms (attention sinks).
        prefetch: gather the next chunk in a second thread while training on this one.
        cache: directory in which to keep activations, for sweeps over coders; null gathers them anew for each run.
    """

    batch_size: int = 4096
    chunk_tokens: int = 65_536
    lm_batch_size: int = 16
    max_norm: float = 10.0
    prefetch: bool = True
    cache: str | None = None

    def __post_init__(self):
        for name in ("batch_size", "chunk_tokens", "lm_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.buffer.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size > self.chunk_tokens:
            raise ValueError(
                f"data.buffer.batch_size is {self.batch_size}; it must be at most data.buffer.chunk_tokens "
                f"({self.chunk_tokens})"
            )
        if not self.max_norm > 1:
            raise ValueError(f"data.buffer.max_norm is {self.max_norm}; it must be above 1")


class ActivationStream:
    """Yields shuffled batches {site: [n, d]} without end; its position is (period, batches yielded from it)."""

    def __init__(self, collect: Callable[[int], Chunk], tokens: int, batch_size: int, seed: int, prefetch: bool):
        self.collect, self.tokens, self.batch_size, self.seed = collect, tokens, batch_size, seed
        self.period, self.done = 0, 0
        self._store: dict[str, Tensor] = {}  # site → [SLOTS · tokens, d]; empty before the first chunk
        self._kept: dict[int, Tensor] = {}  # chunk → the rows of it that may be trained on
        self._thread = ThreadPoolExecutor(1, "activations") if prefetch else None
        self._next: Future | None = None
        self._order: Tensor | None = None

    def __next__(self) -> dict[str, Tensor]:
        """Return the next batch."""
        while self._order is None or (self.done + 1) * self.batch_size > len(self._order):
            if self._order is not None:
                self.period, self.done = self.period + 1, 0
            self._start_period()
        rows = self._order[self.done * self.batch_size : (self.done + 1) * self.batch_size]
        self.done += 1
        return {name: store[rows.to(store.device)] for name, store in self._store.items()}

    def first_chunk(self) -> dict[str, Tensor]:
        """Return the trainable activations of chunk 0, from which scales and centres are measured."""
        self.settle()
        if not self._store:
            self._fill(0)  # the first period then finds the chunk in its slot
        if 0 in self._kept:
            kept = self._kept[0]
            return {name: store[: self.tokens][kept.to(store.device)] for name, store in self._store.items()}
        chunk = self.collect(0)  # its slot holds a later chunk by now
        return {name: x[chunk.kept.to(x.device)] for name, x in chunk.rows.items()}

    def seek(self, period: int, done: int) -> None:
        """Continue after `done` batches of `period`."""
        self.settle()
        self.period, self.done, self._order, self._next = period, done, None, None
        self._kept.clear()

    def settle(self) -> None:
        """Wait for the second thread; its hooks on the model would otherwise see another forward pass."""
        if self._next is not None:
            self._next.result()

    def _start_period(self) -> None:
        """Fill the slots of this period's chunks, order its rows, and begin on the next chunk."""
        self.settle()
        for k in range(max(self.period - 1, 0), self.period + 1):
            if k not in self._kept:
                self._fill(k)
        rows = [self._halves(self.period)[0]]
        if self.period > 0:
            rows.append(self._halves(self.period - 1)[1])
        pool = torch.cat(rows)
        self._order = pool[torch.randperm(len(pool), generator=self._generator(2 * self.period))]
        self._kept = {k: kept for k, kept in self._kept.items() if k >= self.period}
        if len(self._order) < self.batch_size and self.period > 0:
            raise ValueError(
                f"data.buffer.batch_size is {self.batch_size}, but a chunk holds only {len(self._order)} tokens to "
                "train on; raise data.buffer.chunk_tokens"
            )
        self._next = self._thread.submit(self._fill, self.period + 1) if self._thread else None

    def _fill(self, k: int) -> None:
        chunk = self.collect(k)
        if not self._store:
            self._store = {name: x.new_empty(SLOTS * self.tokens, x.shape[1]) for name, x in chunk.rows.items()}
        slot = k % SLOTS * self.tokens
        for name, x in chunk.rows.items():
            self._store[name][slot : slot + self.tokens] = x
        self._kept[k] = chunk.kept.nonzero()[:, 0]

    def _halves(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the store that hold chunk k: those used in period k and those used in period k + 1."""
        kept = self._kept[k]
        order = kept[torch.randperm(len(kept), generator=self._generator(2 * k + 1))] + k % SLOTS * self.tokens
        return order[: len(order) // 2], order[len(order) // 2 :]

    def _generator(self, draw: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + draw)


class ActivationLoader:
    """A sized loader over a stream; its state is the position after the last yielded batch.

    Args:
        stream: the stream of batches.
        batches_per_epoch: the length of the loader.
        taken: train on only this many batches of an epoch, the first ones; null takes all.
        repeat: read the batches of the first epoch in every epoch.
    """

    def __init__(
        self, stream: ActivationStream, batches_per_epoch: int, taken: int | None = None, repeat: bool = False
    ):
        self.stream, self.batches_per_epoch, self.done = stream, batches_per_epoch, 0
        self.taken, self.repeat, self._resumed = taken or batches_per_epoch, repeat, True

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # The caller may stop before the end, so each new iteration is an epoch unless the run has just resumed.
        if not self._resumed or self.done >= self.taken:
            self.done = 0
        if self.repeat and self.done == 0:
            self.stream.seek(0, 0)
        self._resumed = False
        while self.done < self.batches_per_epoch:
            batch = next(self.stream)
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position of the stream and the epoch."""
        return {"period": self.stream.period, "batch": self.stream.done, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `state`."""
        self.stream.seek(state["period"], state["batch"])
        self.done, self._resumed = state["done"], True


class ActivationData(TextData):
    """Yields activations of the model under study for training and its text for validation.

    Args:
        corpus: the text.
        tokenizer: set by the command line to the tokenizer of the model's base.
        source: where the base came from (`hub`, `embedded`, `local`).
        buffer: how activations are gathered.
        block_size: length of one block, in tokens.
        train_tokens: number of tokens of text to gather activations from; they are read again when used up.
        epoch_tokens: number of tokens to train on in an epoch; null makes it `train_tokens`.
        val_tokens: number of tokens to validate on.
        seed: seeds the order of blocks and activations.
    """

    def __init__(
        self,
        corpus: CorpusConfig,
        tokenizer=None,
        source: str = "local",
        buffer: BufferConfig = BufferConfig(),
        block_size: int = 256,
        train_tokens: int | None = 4_000_000,
        epoch_tokens: int | None = None,
        val_tokens: int = 65_536,
        seed: int = 0,
    ):
        super().__init__(
            corpus, tokenizer, source, block_size, buffer.lm_batch_size, train_tokens, epoch_tokens, val_tokens, seed
        )
        self.buffer = buffer
        self._loader: ActivationLoader | None = None
        self._position: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Return the loader's position, for a checkpoint.

        Lightning restores a stateful loader only if nothing has asked for the run's number of steps before, and every
        learning-rate schedule asks. It always restores a data module's state.
        """
        return {} if self._loader is None else self._loader.state_dict() | self._place

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the checkpoint.

        Raises:
            ValueError: the text or the number of processes that share it has changed.
        """
        for name, what in (("text", "the training text"), ("world", "the number of processes")):
            if state_dict.get(name, self._place[name]) != self._place[name]:
                raise ValueError(f"{what} has changed since the checkpoint; a resumed run must keep it")
        self._position = state_dict or None

    @cached_property
    def _place(self) -> dict[str, int]:
        """Return what must be unchanged for a position to keep its meaning."""
        return {"text": text_digest(self.train_blocks.input_ids), "world": self.rank_and_world[1]}

    def stream(self, model: Models, sites: Sequence[Site]) -> ActivationStream:
        """Return this rank's share of the shuffled activations of `model` at `sites`."""
        assert self.tokenizer is not None  # linked from the model
        b, (rank, world), blocks = self.buffer, self.rank_and_world, self.train_blocks.input_ids
        # One chunk never reads a short text many times over; a chunk needs at least two batches to mix.
        tokens = min(b.chunk_tokens, max(blocks.size // world, 2 * b.batch_size))
        forwards = max(tokens // (b.lm_batch_size * self.block_size), 1)
        order = BlockOrder(len(blocks), b.lm_batch_size, forwards, self.seed, rank, world)
        cache = None
        if b.cache is not None:
            made_from = {
                "model": model_digest(model),
                "sites": [site.name for site in sites],
                "text": self._spec("train", self.train_tokens).digest(self.tokenizer),
                "order": asdict(order),
            }
            cache = ActivationCache(Path(b.cache) / f"rank-{rank}" if world > 1 else Path(b.cache), made_from)
        collect = Collector(model, sites, blocks, order, special_ids(self.tokenizer), b.max_norm, cache)
        return ActivationStream(collect, collect.tokens, b.batch_size, self.seed, b.prefetch)

    def train_dataloader(self) -> ActivationLoader:
        """Return batches of the stream that the module asked for."""
        assert self.trainer is not None
        stream = self.trainer.lightning_module.stream
        assert isinstance(stream, ActivationStream)
        tokens, (_, world) = self.epoch_tokens or self.train_blocks.input_ids.size, self.rank_and_world
        batches = tokens // (self.buffer.batch_size * world)
        if batches == 0:
            raise ValueError(
                f"data.buffer.batch_size is {self.buffer.batch_size} on {world} device(s); an epoch holds only "
                f"{tokens} tokens"
            )
        taken = self.trained_batches(batches)
        self._loader = ActivationLoader(stream, batches, taken, self.repeats)
        if self._position is not None:
            self._loader.load_state_dict(self._position)
            self._position = None
        return self._loader
