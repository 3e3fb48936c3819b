"""Losses by parts of the tokens against the definition on whole logits, in float64: values and every gradient."""

import math

import pytest
import torch

from slms.models import token_loss as module
from slms.models.head import Head
from slms.models.token_loss import IGNORED, kl_of, next_tokens, nll_of, token_loss

N, D, V = 11, 5, 13
SIZES = [1, 4, N, 100]


def drawn(seed: int, cap: float | None, scale: float, bias: bool, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, W, b = (2 * torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((N, D), (V, D), (V,)))
    return x.requires_grad_(), Head(W.requires_grad_(), b.requires_grad_() if bias else None, scale, cap)


def by_definition(x, head, targets, teacher, a, c):
    """a · mean nll + c · mean KL, word by word."""

    def logits(x, head):
        rows = []
        for row in x:
            y = [
                head.scale * ((row * w).sum() + (0 if head.bias is None else head.bias[i]))
                for i, w in enumerate(head.weight)
            ]
            rows.append(torch.stack([z if head.cap is None else head.cap * torch.tanh(z / head.cap) for z in y]))
        return torch.stack(rows)

    log_p = logits(x, head) - logits(x, head).exp().sum(1, keepdim=True).log()
    nll = [-log_p[i, t] for i, t in enumerate(targets.tolist()) if t != IGNORED]
    total = a * sum(nll) / len(nll)
    if teacher is not None:
        q = logits(*teacher).exp() / logits(*teacher).exp().sum(1, keepdim=True)
        total = total + c * (q * (q.log() - log_p)).sum() / len(x)
    return total


@pytest.fixture(params=SIZES)
def size(request, monkeypatch):
    """Tokens of one part."""
    monkeypatch.setattr(module, "ROOM", 0)
    monkeypatch.setattr(module, "FEWEST", request.param)
    return request.param


@pytest.fixture
def targets():
    drawn = torch.randint(V, (N,), generator=torch.Generator().manual_seed(9))
    drawn[[0, 4, N - 1]] = IGNORED
    return drawn


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize(
    "cap, scale, bias", [(None, 1.0, False), (1.5, 1.0, True), (None, 0.3, True), (3.0, 2.0, False)]
)
def test_loss_and_every_gradient(size, targets, cap, scale, bias, taught):
    x, head = drawn(0, cap, scale, bias)
    teacher = tuple(drawn(1, cap, 0.7, True)) if taught else None
    inputs = [x, head.weight] + ([head.bias] if bias else [])
    wanted = by_definition(x, head, targets, teacher, 1.3, 0.4)
    found = token_loss(x, head, targets, teacher, 1.3, 0.4)
    torch.testing.assert_close(found.total, wanted)
    parts = [1.3 * found.nll, 0.4 * found.kl if taught else torch.zeros(()).double()]
    torch.testing.assert_close(sum(parts), wanted)
    upstream = torch.tensor(-2.7).double()
    gradients = torch.autograd.grad(found.total, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_losses_of_single_tokens(size, targets):
    x, head = drawn(0, 3.0, 0.5, True)
    other = tuple(drawn(1, None, 1.0, False))
    nll, kl = nll_of(x, head, targets), kl_of(x, head, other)
    assert (nll[targets == IGNORED] == 0).all()
    for i, t in enumerate(targets.tolist()):
        one = torch.tensor([t if t != IGNORED else 0])
        alone = by_definition(x[i : i + 1], head, one, (other[0][i : i + 1], other[1]), 0.0, 1.0)
        assert math.isclose(kl[i].item(), alone.item(), rel_tol=1e-9)
        if t != IGNORED:
            alone = by_definition(x[i : i + 1], head, one, None, 1.0, 0.0)
            assert math.isclose(nll[i].item(), alone.item(), rel_tol=1e-9)


def test_logits_themselves_are_taken_where_there_is_no_head(size, targets):
    y = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    identity = Head(torch.eye(V, dtype=torch.float64))
    teacher = torch.randn(N, V, dtype=torch.float64), Head()
    found = token_loss(y, Head(), targets, teacher, 1.3, 0.4)
    wanted = by_definition(y, identity, targets, (teacher[0], identity), 1.3, 0.4)
    torch.testing.assert_close(found.total, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(total, y)[0] for total in (found.total, wanted)))
    torch.testing.assert_close(nll_of(y, Head(), targets), nll_of(y, identity, targets))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_costs_no_gradient(targets, frozen):
    x, head = drawn(0, None, 1.0, False)
    whole = torch.autograd.grad(token_loss(x, head, targets).total, [x, head.weight])
    (x if frozen == "hidden" else head.weight).requires_grad_(False)
    left = head.weight if frozen == "hidden" else x
    token_loss(x, head, targets).total.backward()
    torch.testing.assert_close(left.grad, whole[frozen == "hidden"])
    assert (x if frozen == "hidden" else head.weight).grad is None


def test_second_backward_pass_is_refused(targets):
    x, head = drawn(0, None, 1.0, False)
    total = token_loss(x, head, targets).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        total.backward()


def test_autocast_computes_products_in_bfloat16_and_the_loss_in_float32(targets):
    x, head = drawn(0, None, 1.0, True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_loss(x, head, targets)
    assert found.total.dtype == torch.float32
    y = (x.bfloat16() @ head.weight.bfloat16().T).float() + head.bias.bfloat16()
    wanted = torch.nn.functional.cross_entropy(y, targets)
    torch.testing.assert_close(found.total, wanted, rtol=1e-6, atol=1e-6)
    mine, theirs = (torch.autograd.grad(total, [x, head.weight, head.bias]) for total in (found.total, wanted))
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_parts_bound_the_memory(monkeypatch):
    """No tensor of n · v elements is made, forward or backward, when the parts are smaller."""
    monkeypatch.setattr(module, "ROOM", 0)
    monkeypatch.setattr(module, "FEWEST", 8)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            seen.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    x, W = torch.randn(256, 4, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    with Watch():
        teacher = torch.randn(256, 4), Head(W.detach())
        token_loss(x, Head(W), torch.zeros(256, dtype=torch.int64), teacher, 1.0, 1.0).total.backward()
    assert max(seen) == 3 * 8 * 64


def test_next_tokens():
    assert next_tokens(torch.tensor([[4, 5, 6]])).tolist() == [[5, 6, IGNORED]]
