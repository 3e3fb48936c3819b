"""What the launches of a routed MLP's kernels share: inputs as kernels take them, constants, grids.

Shapes: n tokens, d model, f neurons, p pathways, m neurons of the largest pathway.
"""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.gpu.tiles import ACTS, Tiles, arithmetic, tiles_for


@functools.cache
def device_offsets(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Copied once per partition and device, and never freed, so that calls and CUDA graphs copy nothing."""
    return torch.tensor(offsets, dtype=torch.int32, device=device)


@functools.cache
def places(device: torch.device, resident: tuple[int, int]) -> int:
    """How many programs run at once, of which one multiprocessor of sm_80, of sm_90 takes `resident`.

    1 in the interpreter, where all programs take turns.
    """
    if device.type != "cuda":
        return 1
    chip = torch.cuda.get_device_properties(device)
    return chip.multi_processor_count * resident[chip.major >= 9]


class Problem(NamedTuple):
    """One call; tensors are contiguous."""

    x: Tensor
    W_in: Tensor
    b_in: Tensor | None
    W_gate: Tensor | None
    b_gate: Tensor | None
    W_out: Tensor
    gates: Tensor
    chosen: Tensor
    offsets: Tensor
    """on the device"""
    m: int
    most: int
    """pathways of a token at most"""
    constants: dict[str, object]
    """what the kernels of this call are compiled for"""

    @property
    def weights(self) -> list[Tensor]:
        """W_in, b_in, W_gate, b_gate: for an absent tensor a kernel takes some address, and never reads it."""
        return [self.W_in if t is None else t for t in (self.W_in, self.b_in, self.W_gate, self.b_gate)]

    @property
    def capacity(self) -> int:
        """The most pairs of a token and a pathway that there can be; how many there are, the device knows alone."""
        return len(self.chosen) * self.most

    @property
    def empty(self) -> bool:
        return self.m == 0 or self.capacity == 0

    @property
    def tiles(self) -> Tiles:
        odd = not self.constants["ALIGNED"] or self.x.shape[1] % 16 != 0
        return tiles_for(self.x.dtype, len(self.x), odd)

    @property
    def product(self) -> dict[str, object]:
        """The constants of a matrix product alone."""
        return {name: self.constants[name] for name in ("ALIGNED", "PRECISION", "UPCAST")}


def prepare(
    x: Tensor,
    W_in: Tensor,
    b_in: Tensor | None,
    W_gate: Tensor | None,
    b_gate: Tensor | None,
    W_out: Tensor,
    gates: Tensor,
    chosen: Tensor,
    offsets: Sequence[int],
    activation: str,
    most: int | None = None,
) -> Problem:
    """The arguments of `kernels.routed_mlp` as the kernels take them."""
    constants = {
        "ACT": ACTS[activation],
        "BIASED": b_in is not None,
        "GATED": W_gate is not None,
        "GATE_BIASED": b_gate is not None,
        "ALIGNED": all(offset % 16 == 0 for offset in offsets),
        **arithmetic(x.dtype),
    }
    p = chosen.shape[1]
    return Problem(
        x=x.contiguous(),
        W_in=W_in.contiguous(),
        b_in=None if b_in is None else b_in.contiguous(),
        W_gate=None if W_gate is None else W_gate.contiguous(),
        b_gate=None if b_gate is None else b_gate.contiguous(),
        W_out=W_out.contiguous(),
        gates=gates.contiguous(),
        chosen=chosen.contiguous(),
        offsets=device_offsets(tuple(offsets), x.device),
        m=max(end - start for start, end in pairwise(offsets)),
        most=p if most is None else min(most, p),
        constants=constants,
    )
