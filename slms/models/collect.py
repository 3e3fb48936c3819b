"""Collects chunks of a frozen language model's activations by hooks, or reads them from disk.

Shapes: b blocks, t position, c tokens of a chunk, d width of a site.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slms.data.module import BlockOrder
from slms.files import write_atomic, write_npz
from slms.models.pair import Models
from slms.models.sites import Site, read_sites
from slms.progress import progress


@dataclass
class Chunk:
    """One chunk's activations, site → [c, d], and a mask [c] bool of the tokens that may be trained on."""

    rows: dict[str, Tensor]
    kept: Tensor


class Collector:
    """Computes chunk k of a frozen model's activations, which depends only on k, the blocks and the seed.

    Args:
        model: the language model, or the two that a crosscoder compares, in eval mode.
        sites: the sites to read.
        blocks: token ids [b, t].
        order: the order of blocks; chunk k reads the blocks of its epoch k.
        special: ids [·] of tokens whose activations are left out.
        max_norm: see `BufferConfig`.
        cache: the cache that keeps chunks, or None.
    """

    def __init__(
        self,
        model: Models,
        sites: Sequence[Site],
        blocks: np.ndarray,
        order: BlockOrder,
        special: Tensor,
        max_norm: float,
        cache: ActivationCache | None = None,
    ):
        self.model, self.sites, self.blocks, self.order = model, list(sites), blocks, order
        self.special, self.max_norm, self.cache = special, max_norm, cache
        self.medians: dict[str, float] | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens in a chunk, including special ones."""
        return self.order.batch_size * self.order.batches_per_epoch * self.blocks.shape[1]

    def __call__(self, k: int) -> Chunk:
        """Compute (or read) chunk k."""
        order = replace(self.order, epoch=k)
        ids = torch.from_numpy(np.stack([self.blocks[rows] for rows in order]).astype(np.int64))
        rows = self.cache.read(k) if self.cache else None
        if rows is None:
            device = next(self.model.parameters()).device
            parts = [read_sites(self.model, batch.to(device), self.sites) for batch in self._with_progress(ids, k)]
            rows = {site.name: torch.cat([part[site.name].float() for part in parts]) for site in self.sites}
            if self.cache:
                self.cache.write(k, rows)
        return Chunk(rows, self._kept(ids.flatten(), rows))

    def _with_progress(self, ids: Tensor, k: int) -> Iterable[Tensor]:
        """Yield the batches of a chunk [m, b, t] and show progress, except in a second thread beside the training."""
        if threading.current_thread() is not threading.main_thread():
            return ids
        sites = ", ".join(site.name for site in self.sites)
        return progress(
            ids, f"collecting activations of {self.tokens:,} tokens at {sites} (chunk {k}), batch", len(ids)
        )

    def _kept(self, ids: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Mark tokens that are not special and whose norms are at most max_norm medians; chunk 0 sets the medians."""
        kept = ~torch.isin(ids, self.special)
        norms = {name: torch.linalg.vector_norm(x, dim=1).cpu() for name, x in rows.items()}
        if self.medians is None:
            # A pathway's output is zero where it was not chosen, so those tokens say nothing about its norm.
            self.medians = {name: norm[kept & (norm > 0)].median().item() for name, norm in norms.items()}
        for name, norm in norms.items():
            kept &= ~(norm > self.max_norm * self.medians[name])
        return kept


class ActivationCache:
    """Keeps chunks on disk for one model, one set of sites and one text; it refuses those of another.

    Raises:
        ValueError: the directory holds activations of something else; the message names the first difference.
    """

    def __init__(self, directory: Path, made_from: dict):
        self.directory, path = directory, directory / "activations.json"
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            for key, value in made_from.items():
                if stored.get(key) != value:
                    raise ValueError(f"data.buffer.cache {directory}: made with {key} {stored.get(key)}, not {value}")
        else:
            write_atomic(path, json.dumps(made_from, indent=1))

    def read(self, k: int) -> dict[str, Tensor] | None:
        """Return chunk k, or None if it does not exist yet."""
        path = self.directory / f"chunk-{k:06d}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}

    def write(self, k: int, rows: dict[str, Tensor]) -> None:
        """Write chunk k."""
        arrays = {name: x.cpu().numpy() for name, x in rows.items()}
        write_npz(self.directory / f"chunk-{k:06d}.npz", **arrays)
