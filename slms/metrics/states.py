"""Metrics whose sums keep the type that they were declared with.

The one place where SLMS reaches into torchmetrics beyond what it documents: `Sums._apply`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric


class Sums(Metric):
    """A metric whose states move between devices but never change type.

    A module under `--trainer.precision=bf16-true` casts everything in it. A sum of bfloat16 numbers stops growing
    after 256 of them, and token ids in a float32 table are exact up to 2²⁴ only there.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, *args, **kwargs)
