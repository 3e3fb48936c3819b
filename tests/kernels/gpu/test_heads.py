"""Projections of chosen heads in Triton: against every head computed and the others left out."""

import math

import pytest
import torch

from slms.kernels.gpu.heads import HeadSlots

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"odd": (33, 6, 5), "even": (32, 4, 16)}  # d, heads, size of a head


def make(n, d, h, e, s, dtype=torch.float64, biased=True, skipped=()):
    """x, W_Q, b, W_O, outputs of slots, and choices of s heads each, none of them `skipped`."""
    g = torch.Generator().manual_seed(n + d)
    sizes = ((n, d, 1.0), (h * e, d, d**-0.5), (h * e, 1, 1.0), (d, h * e, (h * e) ** -0.5), (n, s * e, 1.0))
    x, W, b, W_O, o = (torch.randn(a, c, generator=g, dtype=torch.float64) * scale for a, c, scale in sizes)
    rank = torch.rand(n, h, generator=g)
    rank[:, list(skipped)] = -1
    chosen = torch.zeros(n, h, dtype=torch.bool).scatter(1, rank.topk(s).indices, True)
    made = [t.to(DEVICE, dtype).requires_grad_() for t in (x, W, b[:, 0], W_O, o)]
    return *(made if biased else (*made[:2], None, *made[3:])), chosen.to(DEVICE)


def reference(x, W, b, W_O, o, chosen):
    """The queries of slots, and what their outputs add to the stream, token by token and slot by slot."""
    e = len(W) // chosen.shape[1]
    queries, written = [], []
    for t, choice in enumerate(chosen):
        rows = [slice(e * head, e * head + e) for head in choice.nonzero().flatten().tolist()]
        queries.append(torch.cat([W[at] @ x[t] + (0 if b is None else b[at]) for at in rows]))
        written.append(sum(W_O[:, at] @ o[t, e * j : e * j + e] for j, at in enumerate(rows)))
    return torch.stack(queries), torch.stack(written)


def both(slots, x, W, b, W_O, o):
    return slots.queries(x, W, b), slots.written(W_O, o)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("size", "n"), [("odd", 1), ("odd", 3), ("odd", 20), ("even", 1), ("even", 16), ("even", 40)])
def test_parity(close, poison_new_tensors, size, n, dtype):
    """Few tokens without gradients; many with all gradients under random upstreams."""
    for biased, s in ((True, 2), (False, SIZES[size][1])):
        *inputs, chosen = make(n, *SIZES[size], s, dtype, biased)
        exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
        wanted = reference(*exact, chosen)
        poison_new_tensors()
        with torch.no_grad():
            for one, other, name in zip(both(HeadSlots(chosen, s), *inputs), wanted, "qy", strict=True):
                close(one, other, dtype, name)
        found = both(HeadSlots(chosen, s), *inputs)
        leaves, theirs = ([t for t in given if t is not None] for given in (inputs, exact))
        up = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)).to(t) for t in found]
        grads = torch.autograd.grad(found, leaves, up)
        expected = torch.autograd.grad(wanted, theirs, [t.double() for t in up])
        for i, (one, other) in enumerate(zip(grads, expected, strict=True)):
            close(one, other, dtype, f"gradient {i}")


@pytest.mark.parametrize("n", [1, 4, 20])
def test_weights_of_heads_that_nobody_chose_are_never_read(n):
    *inputs, chosen = make(n, 32, 4, 16, 2, torch.float32, skipped=(1,))
    leaves = inputs if n > 16 else []

    def outcome():
        with torch.set_grad_enabled(bool(leaves)):
            found = both(HeadSlots(chosen, 2), *inputs)
        return [*found, *(torch.autograd.grad(found, leaves, [t.detach() for t in found]) if leaves else ())]

    clean = outcome()
    with torch.no_grad():
        for rows in (inputs[1], inputs[2], inputs[3].T):
            rows[16:32] = math.nan
    assert all(torch.equal(one, other) for one, other in zip(clean, outcome(), strict=True))


def test_gates_and_heads_of_slots():
    chosen = torch.tensor([[False, True, True, False], [True, False, True, False]], device=DEVICE)
    slots = HeadSlots(chosen, 2)
    assert slots.heads.tolist() == [[1, 2], [0, 2]]
    assert slots.gates(torch.arange(8.0, device=DEVICE).view(2, 4)).tolist() == [[1, 2], [4, 6]]


def test_autocast(close):
    *inputs, chosen = make(20, 32, 4, 16, 2, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = both(HeadSlots(chosen, 2), *inputs)
    assert [t.dtype for t in found] == [torch.bfloat16] * 2
    for one, other in zip(found, reference(*(t.detach().double() for t in inputs), chosen), strict=True):
        close(one, other, torch.bfloat16, "output")
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(found, inputs, [t.detach() for t in found]))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("n", [1, 3, 40])
def test_cuda_graph_and_no_waiting_for_the_host(n):
    *inputs, chosen = make(n, 32, 4, 16, 2, torch.float32)
    with torch.no_grad():
        both(HeadSlots(chosen, 2), *inputs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = both(HeadSlots(chosen, 2), *inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        inputs[0].neg_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, both(HeadSlots(chosen, 2), *inputs), strict=True))
