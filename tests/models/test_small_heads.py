"""Compiled attention for small heads against the definition in float64."""

import pytest
import torch
from torch import library

from slms.models.small_heads import LONGEST, serves, small_head_attention


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def definition(q, k, v, window):
    """softmax over the last ``window`` keys, [b, t, h, e], no scale."""
    t = torch.arange(q.shape[1])
    seen = (t[None] <= t[:, None]) & (t[None] > t[:, None] - window)
    scores = torch.einsum("bthe,bshe->bhts", q, k).masked_fill(~seen, -torch.inf)
    return torch.einsum("bhts,bshe->bthe", scores.softmax(-1), v)


@pytest.mark.parametrize("e", [4, 8])
@pytest.mark.parametrize("t, window", [(16, 16), (17, 5), (18, 1), (19, 100), (63, 7), (130, 64)])
def test_output_and_gradients_equal_the_definition(e, t, window):
    inputs = [draw(2, t, 3, e, seed=s) for s in range(3)]
    upstream = draw(2, t, 3, e, seed=9)
    exact = [x.double().requires_grad_() for x in inputs]
    fast = [x.requires_grad_() for x in inputs]
    expected, got = definition(*exact, window), small_head_attention(*fast, window)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-6)
    expected.backward(upstream.double())
    got.backward(upstream)
    for a, b in zip(exact, fast, strict=True):
        torch.testing.assert_close(b.grad.double(), a.grad, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("scale", [1e-4, 10.0, 60.0])
def test_flat_and_peaked_softmax(scale):
    """Logits from equal to thousands apart: probabilities underflow to 0, nothing overflows."""
    inputs = [draw(1, 40, 2, 4, seed=s, scale=scale).requires_grad_() for s in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, got = definition(*exact, 40), small_head_attention(*inputs, 40)
    torch.testing.assert_close(got.double(), expected, atol=1e-3 * scale, rtol=1e-3)
    got.sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_strides_threads_and_poisoned_memory_make_no_difference(monkeypatch):
    q, k, v = (draw(3, 21, 5, 4, seed=s) for s in range(3))
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: empty(x, **kw).fill_(torch.nan))
    once = small_head_attention(q, k, v, 21)
    assert once.isfinite().all()
    strided = small_head_attention(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), 21)
    torch.set_num_threads(2)
    try:
        assert torch.equal(small_head_attention(q, k, v, 21), once)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(strided, once)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_is_not_hidden(where):
    inputs = [draw(1, 24, 2, 4, seed=s) for s in range(3)]
    inputs[where][0, 10, 1, 2] = torch.nan
    out = small_head_attention(*inputs, 24)
    assert out[0, :8].isfinite().all() and out[0, :, 0].isfinite().all()  # 8 to 11 are computed together
    assert out[0, 10, 1].isnan().any()
    if where:
        assert out[0, 10:, 1].isnan().any(-1).all()


def test_operator_check():
    """Schema, fake tensors and autograd registration, as torch.compile needs them."""
    inputs = tuple(draw(1, 17, 2, 4, seed=s).requires_grad_() for s in range(3))
    library.opcheck(torch.ops.slms.small_heads.default, (*inputs, 9))


def test_what_it_serves():
    assert serves(torch.empty(1, 16, 2, 4)) and serves(torch.empty(1, LONGEST, 2, 8))
    for other in (
        torch.empty(1, 15, 2, 4),
        torch.empty(1, LONGEST + 1, 2, 4),
        torch.empty(1, 16, 2, 16),
        torch.empty(1, 16, 2, 4, dtype=torch.bfloat16),
        torch.empty(1, 16, 2, 4, device="meta"),
    ):
        assert not serves(other)
