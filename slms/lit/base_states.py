"""Keeps the frozen base's last hidden states of training blocks on disk, so that arms, seeds and epochs share them.

A base that teaches costs one forward pass a step. Its head is run again at each step, because logits of all words take
85 times the room of hidden states, and the likeliest words alone change the KL (docs/log.md).

A file holds one row a training block, [b, t, d] fp16, and its checksum. Rows are written when a block is first trained
on. A row that a killed process left torn has another checksum, so it is computed again; two processes that write the
same row write the same. The file's name has the digests of base, text and precision, so that a stale one is not found.

Shapes: b blocks, t position, d model.
"""

import hashlib
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slms.files import cache_dir, replacing


class BaseStates:
    """The hidden states [t, d] of numbered blocks; a missing row is computed and kept.

    Args:
        directory: where files go; null means `base_states/` in SLMS's cache.
        key: what the states depend on.
        shape: (b, t, d).

    Raises:
        ValueError: the disk has no room for all rows.
    """

    def __init__(self, directory: str | Path | None, key: tuple[object, ...], shape: tuple[int, int, int]):
        place = cache_dir() / "base_states" if directory is None else Path(directory).expanduser()
        self.path = place / f"{hashlib.sha256(repr((key, shape)).encode()).hexdigest()[:20]}.npy"
        row = np.dtype([("sum", np.uint32), ("states", np.float16, shape[1:])])
        place.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            size, free = shape[0] * row.itemsize, shutil.disk_usage(place).free
            if size > free:
                raise ValueError(
                    f"model.distill.cache: {place} has {free:,} bytes left; the base's states of {shape[0]:,} blocks "
                    f"take {size:,}: name another disk with model.distill.cache_dir"
                )
            with replacing(self.path) as new:  # a sparse file, which takes room as rows are written
                np.lib.format.open_memmap(f"{new}", mode="w+", dtype=row, shape=shape[:1]).flush()
        self._rows = np.lib.format.open_memmap(f"{self.path}", mode="r+")

    def __len__(self) -> int:
        """How many rows are kept."""
        return int((self._rows["sum"] != 0).sum())

    def of(self, blocks: list[int], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return the states of `blocks`, [b, t, d] fp32 on the CPU.

        compute: gives the states [b, t, d] of the items of `blocks` at some positions, if rows are missing.
        """
        missing = [i for i, block in enumerate(blocks) if not self._whole(block)]
        if missing:
            for i, states in zip(missing, compute(missing).float().cpu().numpy().astype(np.float16), strict=True):
                self._rows["states"][blocks[i]] = states
                self._rows["sum"][blocks[i]] = _checksum(states)
        return torch.from_numpy(self._rows["states"][blocks].astype(np.float32))

    def _whole(self, block: int) -> bool:
        known = self._rows["sum"][block]
        return bool(known) and known == _checksum(self._rows["states"][block])


def _checksum(states: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(states).data) or 1  # 0 marks a row that is missing
