"""Sparse products over picked latents, with which a training step needs only one dense product, x W_encᵀ.

`Picks` lists the z nonzero entries of a matrix [n, s], row by row. Encoding, decoding and their gradients need only
three products over them: `spmm` (V W), `spmm_t` (Vᵀ x) and `sddmm` (the picked entries of g Wᵀ). Each switches to a
dense product if there are too many picks for the sparse one to be faster.

Shapes: n tokens, d model, s latents, z picks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this share of picked entries the dense products are faster. On one core (d 512, s 16,384, n 1,024, fp32) a pick
# costs 0.6 µs in the four sparse products of a step; the four dense products cost 500 ms.
DENSE_SHARE = 0.05


class Picks:
    """The latents that each row uses: row i uses `indices[offsets[i] : offsets[i + 1]]`, each at most once.

    Attributes:
        indices: the latents, [z] int64.
        offsets: where each row begins in `indices`, [n + 1] int64.
        n_latents: the number of latents, s.
    """

    def __init__(self, indices: Tensor, offsets: Tensor, n_latents: int):
        self.indices, self.offsets, self.n_latents = indices, offsets, n_latents

    @classmethod
    def of_flat(cls, flat: Tensor, shape: torch.Size) -> Picks:
        """Make picks from ascending positions [z] in the flattened matrix of `shape` (n, s)."""
        n, s = shape
        rows = torch.div(flat, s, rounding_mode="floor")
        return cls(flat - rows * s, F.pad(rows.bincount(minlength=n).cumsum(0), (1, 0)), s)

    @classmethod
    def of_rows(cls, indices: Tensor, n_latents: int) -> Picks:
        """Make picks from a rectangle [n, k] in which row i has the latents indices[i]."""
        n, k = indices.shape
        return cls(indices.reshape(-1), torch.arange(0, n * k + 1, k, device=indices.device), n_latents)

    @property
    def n_rows(self) -> int:
        """The number of rows, n."""
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> Tensor:
        """The row of each pick, [z]."""
        rows = torch.arange(self.n_rows, device=self.indices.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))

    @cached_property
    def flat(self) -> Tensor:
        """The position of each pick in the flattened matrix, [z]."""
        return self.rows * self.n_latents + self.indices

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transposed picks: the order [z] that sorts them by latent, their rows [z] in it, offsets [s + 1]."""
        order = self.indices.argsort()
        counts = self.indices.bincount(minlength=self.n_latents)
        return order, self.rows[order], F.pad(counts.cumsum(0), (1, 0))

    @property
    def is_dense(self) -> bool:
        """Whether dense products are faster."""
        return len(self.indices) > DENSE_SHARE * self.n_rows * self.n_latents

    def dense(self, values: Tensor) -> Tensor:
        """Return the matrix [n, s] with `values` [z] at the picks and zeros elsewhere."""
        zeros = values.new_zeros(self.n_rows * self.n_latents)
        return zeros.scatter(0, self.flat, values).view(self.n_rows, self.n_latents)

    def split(self, boundaries: Tensor) -> Picks:
        """Split each row into G by latent: row i·G + g holds latents from boundaries[g − 1] to below boundaries[g].

        `boundaries` is [G] and ends with s. Latents must ascend within each row.
        """
        groups = torch.bucketize(self.indices, boundaries, right=True)
        rows = self.rows * len(boundaries) + groups
        offsets = F.pad(rows.bincount(minlength=self.n_rows * len(boundaries)).cumsum(0), (1, 0))
        return Picks(self.indices, offsets, self.n_latents)


def spmm(picks: Picks, values: Tensor, W: Tensor) -> Tensor:
    """Compute y_n = Σ_z∈n v_z W[i_z], [n, d], from values [z] and W [s, d]."""
    if picks.is_dense:
        return picks.dense(values) @ W
    return _bag(picks.indices, W, picks.offsets, values)


def spmm_t(picks: Picks, values: Tensor, x: Tensor) -> Tensor:
    """Compute g_s = Σ_{z: i_z = s} v_z x[row of z], [s, d], from values [z] and x [n, d]."""
    if picks.is_dense:
        return picks.dense(values).T @ x
    order, rows, offsets = picks.by_latent
    return _bag(rows, x, offsets, values[order])


def sddmm(picks: Picks, g: Tensor, W: Tensor) -> Tensor:
    """Compute v_z = ⟨g[row of z], W[i_z]⟩, [z], from g [n, d] and W [s, d]."""
    if picks.is_dense:
        return (g @ W.T).view(-1)[picks.flat]
    # The kernel that differentiates embedding_bag by its weights computes dot products without a [z, d] temporary.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        g.contiguous(), W, picks.indices, picks.offsets, picks.rows, 0
    )


def _bag(indices: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=weights.contiguous(), include_last_offset=True
    )


class _Decode(torch.autograd.Function):
    """Y = V W;  dV = dY Wᵀ at the picks,  dW = Vᵀ dY."""

    @staticmethod
    def forward(ctx, values: Tensor, W: Tensor, picks: Picks) -> Tensor:
        ctx.save_for_backward(values, W)
        ctx.picks = picks
        return spmm(picks, values, W)

    @staticmethod
    def backward(ctx, grad: Tensor):
        values, W = ctx.saved_tensors
        grad = grad.to(W.dtype)  # autocast may have computed the product in bfloat16
        grad_values = sddmm(ctx.picks, grad, W) if ctx.needs_input_grad[0] else None
        grad_W = spmm_t(ctx.picks, values, grad) if ctx.needs_input_grad[1] else None
        return grad_values, grad_W, None


class _Encode(torch.autograd.Function):
    """Z = (x − c) Wᵀ + b at the picks;  dW = dZᵀ (x − c),  db = Σ_n dZ,  dx = dZ W,  dc = −db W."""

    @staticmethod
    def forward(ctx, x, shift, W, b, picks: Picks, z: Tensor, centred: Tensor) -> Tensor:
        ctx.save_for_backward(W, centred)
        ctx.picks = picks
        return z

    @staticmethod
    def backward(ctx, grad: Tensor):
        W, centred = ctx.saved_tensors
        need_x, need_shift, need_W, need_b = ctx.needs_input_grad[:4]
        grad_x = spmm(ctx.picks, grad, W) if need_x else None
        grad_W = spmm_t(ctx.picks, grad, centred) if need_W else None
        grad_b = grad.new_zeros(len(W)).index_add_(0, ctx.picks.indices, grad) if need_shift or need_b else None
        grad_shift = -(grad_b @ W) if need_shift else None
        return grad_x, grad_shift, grad_W, grad_b if need_b else None, None, None, None


def decode(picks: Picks, values: Tensor, W_dec: Tensor) -> Tensor:
    """Sum value × decoder row over each row's picks, [n, d]; differentiable in values and W_dec."""
    return _Decode.apply(values, W_dec, picks)


def encode(
    x: Tensor,
    shift: Tensor | None,
    W_enc: Tensor,
    b_enc: Tensor | None,
    pick: Callable[[Tensor], Picks],
    scratch: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Picks, Tensor]:
    """Compute pre-activations (x − shift) W_encᵀ + b_enc, [n, s], and keep those of the latents that `pick` chooses.

    Args:
        x: inputs [n, d].
        shift: a vector [d] subtracted from x, or None.
        W_enc: [s, d].
        b_enc: [s] or None.
        pick: maps pre-activations [n, s], multiplied by `weights`, to picks; no gradient flows through it.
        scratch: a buffer [n, s] to compute into, because fresh pages for 64 MB cost a fifth of the product itself.
        weights: positive factors [s] on the pre-activations that `pick` sees; None means 1.

    Returns:
        The picks and their pre-activations [z], differentiable in x, shift, W_enc and b_enc.
    """
    with torch.no_grad():
        centred = x if shift is None else x - shift
        if b_enc is None:
            pre = torch.mm(centred, W_enc.T, out=scratch)
        else:
            pre = torch.addmm(b_enc, centred, W_enc.T, out=scratch)
        picks = pick(pre if weights is None else pre.mul_(weights))
        z = pre.view(-1)[picks.flat]
        if weights is not None:
            z /= weights[picks.indices]
    return picks, _Encode.apply(x, shift, W_enc, b_enc, picks, z, centred)


def largest_columns(pre: Tensor, k: int) -> Tensor:
    """Find the columns [n, k] of exactly the k largest entries of each row of pre [n, s], in no particular order.

    The search has two levels, since the k groups with the largest maxima hold the k largest entries.
    """
    n, s = pre.shape
    # Strided groups of 8 to 16 took 25 ms; one torch.topk took 37 ms (n 1,024, s 16,384, k 32, one core).
    size = next((g for g in (16, 8, 4, 2) if s % g == 0 and k <= s // (2 * g)), 1)
    if size == 1:
        return pre.topk(k, dim=1, sorted=False).indices
    maxima = pre.view(n, size, s // size).amax(1)
    groups = maxima.topk(k, dim=1, sorted=False).indices
    members = (groups[:, :, None] + torch.arange(0, s, s // size, device=pre.device)).view(n, -1)
    chosen = pre.gather(1, members).topk(k, dim=1, sorted=False).indices
    return members.gather(1, chosen)
