"""Metrics whose sums keep the type that they were declared with.

The one place where SLMS reaches into torchmetrics beyond what it documents: `Sums._apply`, and the update count that
`restore` sets.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric


class Sums(Metric):
    """A metric whose states move between devices but never change type.

    A module under `--trainer.precision=bf16-true` casts everything in it. A sum of bfloat16 numbers stops growing
    after 256 of them, and token ids in a float32 table are exact up to 2²⁴ only there.
    """

    full_state_update = False
    is_differentiable = False

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, *args, **kwargs)


def restore(metric: Metric, states: Mapping[str, Tensor | list[Tensor]]) -> None:
    """Give a metric the sums that another of its kind had gathered: its `metric_state`."""
    for name, value in states.items():
        setattr(metric, name, value)
    metric._update_count = 1  # or torchmetrics warns that nothing was gathered yet
