"""Metrics whose sums keep the type with which they were declared.

This is the one place where SLMS uses undocumented parts of torchmetrics: `Sums._apply`, and the update count that
`restore` sets.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric


class Sums(Metric):
    """A metric whose states move between devices but never change type.

    A module under `--trainer.precision=bf16-true` casts everything in it. But a sum of ones in bfloat16 stops growing
    at 256, and only float32 holds token ids up to 2²⁴ exactly.
    """

    full_state_update = False
    is_differentiable = False

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, *args, **kwargs)


def restore(metric: Metric, states: Mapping[str, Tensor | list[Tensor]]) -> None:
    """Give a metric the sums (`metric_state`) that another of its kind gathered."""
    for name, value in states.items():
        setattr(metric, name, value)
    metric._update_count = 1  # or torchmetrics warns that nothing was gathered yet
