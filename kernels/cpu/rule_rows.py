"""Training-free rules on the CPU: the MLP of a few tokens in one compiled call, reading only what each token chose.

Shapes: n tokens, d model, f neurons, q rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slms.kernels.cpu import rule_loops as loops
from slms.kernels.cpu.pointwise import CODES

KINDS = {
    "output": loops.BY_OUTPUT,
    "gate": loops.BY_GATE,
    "prediction": loops.BY_PREDICTION,
    "inputs": loops.BY_INPUTS,
}


class Choice(NamedTuple):
    """What is kept of a vector v: by score ∣v∣ · scale, NaN the largest."""

    scale: Tensor
    """[of v]"""
    most: int | None = None
    """how many are kept, or None for all that reach `least`; −∞ keeps all"""
    least: float = 0.0


class RuleCall(NamedTuple):
    """An MLP under a rule, float32; biases may be None, and so may W_gate."""

    by: str
    """`output`: W_in and W_gate run whole; `gate`: W_gate alone; `prediction`: neither; `inputs`: each by its choice"""
    activation: str
    W_gate: Tensor | None
    """[f, d]; by inputs, this and W_in are [d, f]"""
    b_gate: Tensor | None
    W_in: Tensor
    b_in: Tensor | None
    W_out: Tensor
    """[f, d]"""
    b_out: Tensor | None
    mean: Tensor
    """[f], subtracted from activations before what is kept of them is added up"""
    down: Choice
    gate: Choice | None = None
    up: Choice | None = None
    x_mean: Tensor | None = None
    """[d], subtracted from inputs; by inputs"""
    narrow: Tensor | None = None
    """[q, d]; by prediction"""
    wide: Tensor | None = None
    """[2f or f, q]: of W_in, then of W_gate"""
    shift: Tensor | None = None


def fits(call: RuleCall) -> bool:
    """Whether the compiled loops know the activation, and all tensors are float32, contiguous and on the CPU."""
    scales = [choice.scale for choice in (call.gate, call.up, call.down) if choice is not None]
    tensors = scales + [value for value in call if isinstance(value, Tensor)]
    return call.activation in CODES and all(
        t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors
    )


class RuleMLP:
    """A `RuleCall` that `fits`; it holds the tensors, which must not move."""

    def __init__(self, call: RuleCall) -> None:
        a, (f, d) = np.zeros(loops.ARGUMENTS, np.int64), call.W_out.shape
        a[[loops.KIND, loops.D, loops.F, loops.CODE]] = KINDS[call.by], d, f, CODES[call.activation]
        a[loops.RANK] = 0 if call.narrow is None else len(call.narrow)
        places = {loops.W_GATE: call.W_gate, loops.B_GATE: call.b_gate, loops.W_IN: call.W_in, loops.B_IN: call.b_in}
        places |= {loops.W_OUT: call.W_out, loops.B_OUT: call.b_out, loops.MEAN: call.mean, loops.X_MEAN: call.x_mean}
        places |= {loops.NARROW: call.narrow, loops.WIDE: call.wide, loops.SHIFT: call.shift}
        for column, tensor in places.items():
            a[column] = 0 if tensor is None else tensor.data_ptr()
        for which, choice in {loops.GATE: call.gate, loops.UP: call.up, loops.DOWN: call.down}.items():
            if choice is not None:
                a[loops.SCALE + which] = choice.scale.data_ptr()
                a[loops.COUNT + which] = -1 if choice.most is None else choice.most
                a[loops.LEAST + which] = np.float32(max(choice.least, 0.0)).view(np.int32)  # scores are never negative
        self.held, self.arguments = call, a

    def __call__(self, x: Tensor) -> Tensor:
        """Output [n, d] of x [n, d] float32."""
        x = x.contiguous()
        y, a = torch.empty_like(x), self.arguments.copy()
        a[loops.X], a[loops.Y] = x.data_ptr(), y.data_ptr()
        loops.rule_tokens_loop(a, len(x))
        return y
