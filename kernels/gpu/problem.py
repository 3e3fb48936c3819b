"""What the launches of a routed MLP's kernels share: inputs as kernels take them, constants, grids.

Shapes: n tokens, d model, f neurons, p pathways, m neurons of the largest pathway.
"""

import functools
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.call import Call
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
    """One call as the kernels take it; tensors are contiguous."""

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


def problem(call: Call) -> Problem:
    """The call as the kernels take it."""
    x, p = call.x, call.chosen.shape[1]
    constants = {
        "ACT": ACTS[call.activation],
        "BIASED": call.b_in is not None,
        "GATED": call.W_gate is not None,
        "GATE_BIASED": call.b_gate is not None,
        "ALIGNED": all(offset % 16 == 0 for offset in call.offsets),
        **arithmetic(x.dtype),
    }
    offsets = device_offsets(tuple(call.offsets), x.device)
    m = max(end - start for start, end in pairwise(call.offsets))
    most = p if call.most is None else min(call.most, p)
    call = call.contiguous()
    return Problem(call.x, *call.weights, call.gates, call.chosen, offsets, m, most, constants)
