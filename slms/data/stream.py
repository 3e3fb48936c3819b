"""Streams training batches straight from a corpus larger than memory to ranks and workers, exactly resumable.

Each of the N = ranks × workers shards reads every N-th document (or whole files of a hub corpus, if there are enough),
tokenises it and cuts batches of blocks. It follows the corpus's own order and starts again after its end. A shard's
state is its position in the corpus and the tokens that it has read but not yielded.

Shapes: b blocks of a batch, t position.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from slms.data.corpora import EMBEDDED, documents, is_file
from slms.data.dataset import open_dataset
from slms.data.files import text_of
from slms.data.text import encode


class Corpus(NamedTuple):
    """The corpus that a stream reads: the arguments of `slms.data.corpora.documents` for its training split."""

    name: str
    seed: int
    validation: str | None
    text_field: str
    config: str | None = None


class Documents:
    """Yields the texts of one shard of a corpus without end; `state` is its position.

    Raises:
        ValueError: the shard turns out to have no document.
    """

    def __init__(self, corpus: Corpus, index: int, count: int, state: dict[str, Any] | None = None):
        self.corpus, self.index, self.count = corpus, index, count
        self.state = state or {"read": 0, "place": None}

    def __iter__(self) -> Iterator[str]:
        while True:
            before = self.state["read"]
            yield from self._pass()
            if self.state["read"] == before == 0:
                raise ValueError(f"corpus {self.corpus.name}: no document for shard {self.index + 1} of {self.count}")
            self.state = {"read": 0, "place": None}

    def _pass(self) -> Iterator[str]:
        """Yield the rest of this pass."""
        name, read = self.corpus.name, self.state["read"]
        if name == EMBEDDED or is_file(name):
            c = self.corpus
            mine = islice(documents(name, "train", c.seed, c.validation, c.text_field), self.index, None, self.count)
            for number, document in enumerate(islice(mine, read, None), read + 1):
                self.state = {"read": number, "place": None}
                yield document.text
            return
        from datasets.distributed import split_dataset_by_node

        rows = split_dataset_by_node(
            open_dataset(name, "train", self.corpus.config), rank=self.index, world_size=self.count
        )
        if self.state["place"] is not None:
            rows.load_state_dict(self.state["place"])
        # Without `iter`, the dataset would divide a shard's rows among the loader's workers once more.
        for number, row in enumerate(rows.iter(batch_size=1), read + 1):
            self.state = {"read": number, "place": rows.state_dict()}
            yield text_of({field: values[0] for field, values in row.items()}, self.corpus.text_field, name)


class TokenStream(IterableDataset):
    """Yields the batches of one rank: a dict with `input_ids` int64 [b, t], and its shard's worker and state."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        block_size: int,
        rank: int,
        world: int,
    ):
        super().__init__()
        self.corpus, self.tokenizer, self.batch_size, self.block_size = corpus, tokenizer, batch_size, block_size
        self.rank, self.world = rank, world
        self.states: list[dict[str, Any] | None] = []  # the state of each worker's shard
        self.first = 0  # the worker whose turn it is

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], int, dict[str, Any]]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        worker = (worker + self.first) % workers  # a loader asks its workers in turn, starting with worker 0
        state = self.states[worker] if self.states else None
        source = Documents(self.corpus, self.rank * workers + worker, self.world * workers, state and state["source"])
        ids: list[int] = state["ids"] if state else []
        texts, wanted = iter(source), self.batch_size * self.block_size
        while True:
            while len(ids) < wanted:
                ids = ids + encode(next(texts), self.tokenizer)
            block, ids = ids[:wanted], ids[wanted:]
            batch = {"input_ids": torch.tensor(block).view(self.batch_size, self.block_size)}
            yield batch, worker, {"source": source.state, "ids": ids}


class Loader(Protocol):
    """A loader of training batches whose state is a position among them."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the batches of an epoch, or the rest of them."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last yielded batch."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`."""


class StreamLoader(DataLoader):
    """A loader of an epoch's batches; its state holds that of every shard of every rank.

    taken: train on only this many batches of an epoch, the first ones; null takes all.
    """

    def __init__(self, stream: TokenStream, batches_per_epoch: int, num_workers: int = 0, taken: int | None = None):
        super().__init__(stream, batch_size=None, num_workers=num_workers)
        self.stream, self.batches_per_epoch, self.workers = stream, batches_per_epoch, max(num_workers, 1)
        self.taken = taken or batches_per_epoch
        self.epoch = self.done = 0
        self.states: list[dict[str, Any] | None] = [None] * self.workers
        self._resumed = True

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self):
        if not self._resumed and self.done > 0:
            self.epoch, self.done = self.epoch + 1, 0
        self._resumed = False
        total = self.epoch * self.batches_per_epoch + self.done
        self.stream.states, self.stream.first = list(self.states), total % self.workers
        for batch, worker, state in islice(super().__iter__(), self.batches_per_epoch - self.done):
            self.done += 1
            self.states[worker] = state
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return position and shards of all ranks after the last yielded batch; every rank must call this."""
        ranks: list[Any] = [self.states]
        if torch.distributed.is_initialized():
            ranks = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, self.states)
        return {"epoch": self.epoch, "done": self.done, "ranks": ranks, "batch_size": self.stream.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`.

        Raises:
            ValueError: the shards differ, because the number of ranks or workers or the batch size has changed.
        """
        before = (len(state["ranks"]), len(state["ranks"][0]), state["batch_size"])
        now = (self.stream.world, self.workers, self.stream.batch_size)
        if before != now:
            raise ValueError(
                "a streamed run resumes on the shards that it read: (processes, data.num_workers, data.batch_size) "
                f"were {before} and are now {now}"
            )
        self.epoch, self.done, self.states = state["epoch"], state["done"], list(state["ranks"][self.stream.rank])
        if self.done >= self.taken:
            self.epoch, self.done = self.epoch + 1, 0
        self._resumed = True
