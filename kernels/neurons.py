"""Row-sparse products for single tokens, which read only the kept rows of a matrix.

Every training-free rule on a dense MLP executes through these two: `dots` forms some of the outputs of x Wᵀ (a row of W
is an output, as in the up-projection), `sums` uses some of the inputs of v W (a row of W is an input, as in the
down-projection stored [f, d], or in an up-projection stored [d, f]). Each token has its own rows, so tokens share
nothing; for more than a few tokens a dense product is faster, and callers use that. Compiled loops run them on the CPU,
and Triton (`kernels.gpu.sparse`) on CUDA for up to GPU_TOKENS tokens.

Shapes: n tokens, r rows, c columns of W.
"""

import functools

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from slms.kernels.backends import GPU_TOKENS, refusal
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.memory import bits_as_float


def can_skip(x: Tensor, n_tokens: int) -> bool:
    """Whether `dots` and `sums` run for `n_tokens` tokens in tensors of this type on this device."""
    if x.device.type == "cuda":
        return n_tokens <= GPU_TOKENS and refusal("triton", "cuda", x.dtype) is None
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def dots_reference(x: Tensor, W: Tensor, keep: Tensor, bias: Tensor | None = None) -> Tensor:
    """u [n, r] = x [n, c] W [r, c]ᵀ + bias [r] where keep [n, r], else 0. It executes dense FLOPs."""
    return torch.where(keep, torch.nn.functional.linear(x, W, bias), 0)


def sums_reference(v: Tensor, W: Tensor, keep: Tensor) -> Tensor:
    """y [n, c] = Σ over kept rows i of v[:, i] W[i]; v and keep [n, r], W [r, c]. Executes dense FLOPs."""
    return torch.where(keep, v, 0) @ W


def _wide(value):
    """A stored number as float32; bfloat16 arrives as its uint16 bits, the upper half of a float32's."""


@overload(_wide, inline="always")
def _wide_overload(value):
    if value == types.uint16:
        return lambda value: bits_as_float(np.uint32(value) << np.uint32(16))
    return lambda value: value


@functools.partial(njit, inline="always")
def _kept(keep, t, index):
    """Write the kept rows of token t to index; returns how many."""
    count = 0
    for i in range(keep.shape[1]):
        if keep[t, i]:
            index[count] = i
            count += 1
    return count


@njit
def _dots(x, W, keep, bias, out):
    """out [n, r] float32 begins as zeros; x float32; W, bias float32 or uint16 bits; an empty bias stands for None."""
    index = np.empty(W.shape[0], np.int64)
    for t in range(x.shape[0]):
        count = _kept(keep, t, index)
        whole = count - count % 4
        for j in range(0, whole, 4):  # four rows at a time: four streams of memory are read at once
            i0, i1, i2, i3 = index[j], index[j + 1], index[j + 2], index[j + 3]
            s0 = s1 = s2 = s3 = np.float32(0)
            for c in range(x.shape[1]):
                value = x[t, c]
                s0 += value * _wide(W[i0, c])
                s1 += value * _wide(W[i1, c])
                s2 += value * _wide(W[i2, c])
                s3 += value * _wide(W[i3, c])
            out[t, i0], out[t, i1], out[t, i2], out[t, i3] = s0, s1, s2, s3
        for j in range(whole, count):
            i = index[j]
            total = np.float32(0)
            for c in range(x.shape[1]):
                total += x[t, c] * _wide(W[i, c])
            out[t, i] = total
        if bias.shape[0] > 0:
            for j in range(count):
                out[t, index[j]] += _wide(bias[index[j]])


@njit
def _sums(v, W, keep, out):
    """out [n, c] float32 begins as zeros; v float32; W float32 or uint16 bits."""
    index = np.empty(W.shape[0], np.int64)
    for t in range(v.shape[0]):
        count = _kept(keep, t, index)
        whole = count - count % 4
        for j in range(0, whole, 4):
            i0, i1, i2, i3 = index[j], index[j + 1], index[j + 2], index[j + 3]
            v0, v1, v2, v3 = v[t, i0], v[t, i1], v[t, i2], v[t, i3]
            for c in range(W.shape[1]):
                out[t, c] += v0 * _wide(W[i0, c]) + v1 * _wide(W[i1, c]) + v2 * _wide(W[i2, c]) + v3 * _wide(W[i3, c])
        for j in range(whole, count):
            i = index[j]
            for c in range(W.shape[1]):
                out[t, c] += v[t, i] * _wide(W[i, c])


def check(v: Tensor, W: Tensor, keep: Tensor, rows: int, columns: int) -> None:
    """Raise ValueError if shapes or types do not fit, or if nothing that reads only kept rows can run."""
    if not can_skip(W, len(v)):
        known = f"float32 and bfloat16 on the CPU; on CUDA, with Triton, float16 too, for up to {GPU_TOKENS} tokens"
        raise ValueError(f"`W` is {W.dtype} on {W.device}, tokens are {len(v)}; row-sparse products know {known}.")
    if v.dtype != W.dtype:
        raise ValueError(f"`W` is {W.dtype}; it must be of the type of the other factor ({v.dtype}).")
    if tuple(W.shape) != (rows, columns):
        raise ValueError(f"`W` has shape {tuple(W.shape)}; the other arguments ask for {(rows, columns)}.")
    if not W.is_contiguous():
        raise ValueError(f"`W` has strides {W.stride()}; its rows must follow each other, or each call would copy it.")
    if keep.dtype != torch.bool or tuple(keep.shape) != (len(v), rows):
        raise ValueError(f"`keep` is {keep.dtype} {tuple(keep.shape)}; it must be torch.bool {(len(v), rows)}.")


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor as an array, without a copy if it is contiguous, as `W` is; bfloat16 as its bits."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _on_gpu():
    from slms.kernels.gpu import sparse  # Triton exists for Linux alone

    return sparse


def dots(x: Tensor, W: Tensor, keep: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `dots_reference` by reading only the kept rows of W; it accumulates in fp32 and has no gradient.

    x [n, c], W [r, c] contiguous, keep [n, r] bool, bias [r] or None. Raises ValueError if an input does not fit or the
    product cannot run.
    """
    check(x, W, keep, keep.shape[-1], x.shape[-1])
    if W.device.type == "cuda":
        with torch.cuda.device_of(W):  # Triton launches on the current device
            return _on_gpu().dots(x, W, keep, bias)
    out = torch.zeros(keep.shape, dtype=torch.float32)
    shift = W.new_empty(0) if bias is None else bias
    _dots(_array(x.float()), _array(W), _array(keep), _array(shift), out.numpy())
    return out.to(W.dtype)


def sums(v: Tensor, W: Tensor, keep: Tensor) -> Tensor:
    """Compute `sums_reference` by reading only the kept rows of W; it accumulates in fp32 and has no gradient.

    v and keep [n, r], W [r, c], contiguous. Raises ValueError if an input does not fit or the product cannot run.
    """
    check(v, W, keep, v.shape[-1], W.shape[-1])
    if W.device.type == "cuda":
        with torch.cuda.device_of(W):
            return _on_gpu().sums(v, W, keep)
    out = torch.zeros(len(v), W.shape[1], dtype=torch.float32)
    _sums(_array(v.float()), _array(W), _array(keep), out.numpy())
    return out.to(W.dtype)
