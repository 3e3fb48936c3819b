"""The activations by name, with value and derivative, from the fused elementwise ops of PyTorch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


class Activation(NamedTuple):
    value: Callable[[Tensor], Tensor]
    """a -> act(a)"""
    backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient of act(a), a) -> gradient of a"""

    def __call__(self, a: Tensor) -> Tensor:
        return self.value(a)


def _gelu(approximate: str) -> Activation:
    return Activation(
        lambda a: F.gelu(a, approximate=approximate),
        lambda grad, a: aten.gelu_backward(grad, a, approximate=approximate),
    )


# Keys are the names of transformers' ACT2FN; gelu_new and gelu_pytorch_tanh are the same function.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu("none"),
    "gelu_new": _gelu("tanh"),
    "gelu_pytorch_tanh": _gelu("tanh"),
    "relu": Activation(F.relu, lambda grad, a: aten.threshold_backward(grad, a, 0)),
    "silu": Activation(F.silu, aten.silu_backward),
}
