"""Inputs, constants and grids that the launches of a routed MLP's kernels share.

Shapes: n tokens, d model, f neurons, p pathways, m neurons of the largest pathway.
"""

import functools
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from slms.kernels.backends import GPU_PATHWAYS
from slms.kernels.call import Call
from slms.kernels.gpu.choice import device_offsets
from slms.kernels.gpu.tiles import ACTS, Tiles, arithmetic, tiles_for


@functools.cache
def places(device: torch.device, resident: tuple[int, int]) -> int:
    """How many programs run at once on a device whose multiprocessors take `resident` each (on sm_80, on sm_90).

    It is 1 in the interpreter, where all programs take turns.
    """
    if device.type != "cuda":
        return 1
    chip = torch.cuda.get_device_properties(device)
    return chip.multi_processor_count * resident[chip.major >= 9]


class Problem(NamedTuple):
    """One call in the form that the kernels take; tensors are contiguous."""

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
    bounds: tuple[int, ...]
    """the same on the host"""
    m: int
    most: int
    """an upper bound on pathways per token"""
    constants: dict[str, object]
    """the constants for which this call's kernels are compiled"""

    @property
    def weights(self) -> list[Tensor]:
        """W_in, b_in, W_gate, b_gate; an absent tensor is replaced by some address, which the kernel never reads."""
        return [self.W_in if t is None else t for t in (self.W_in, self.b_in, self.W_gate, self.b_gate)]

    @property
    def capacity(self) -> int:
        """The most pairs of a token and a pathway that there can be; only the device knows how many there are."""
        return len(self.chosen) * self.most

    @property
    def empty(self) -> bool:
        return self.m == 0 or self.capacity == 0

    @property
    def single(self) -> bool:
        """Whether every pathway is one neuron."""
        return self.m == 1 and len(self.W_in) == self.chosen.shape[1]

    @property
    def small(self) -> bool:
        """Whether there are too many pathways to group tokens by them: then they are rows of neurons."""
        return self.chosen.shape[1] > GPU_PATHWAYS

    @property
    def tiles(self) -> Tiles:
        odd = not self.constants["ALIGNED"] or self.x.shape[1] % 16 != 0
        return tiles_for(self.x.dtype, len(self.x), odd)

    @property
    def product(self) -> dict[str, object]:
        """The constants of a matrix product alone."""
        return {name: self.constants[name] for name in ("ALIGNED", "PRECISION", "UPCAST")}


def problem(call: Call) -> Problem:
    """Bring the call into the form that the kernels take."""
    x, p = call.x, call.chosen.shape[1]
    constants = {
        "ACT": ACTS[call.activation],
        "BIASED": call.b_in is not None,
        "GATED": call.W_gate is not None,
        "GATE_BIASED": call.b_gate is not None,
        "ALIGNED": all(offset % 16 == 0 for offset in call.offsets),
        **arithmetic(x.dtype),
    }
    bounds = tuple(call.offsets)
    offsets = device_offsets(bounds, x.device)
    m = max(end - start for start, end in pairwise(call.offsets))
    most = p if call.most is None else min(call.most, p)
    call = call.contiguous()
    return Problem(call.x, *call.weights, call.gates, call.chosen, offsets, bounds, m, most, constants)
