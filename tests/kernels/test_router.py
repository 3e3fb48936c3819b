"""The plain router against its definition, written per token."""

import math

import pytest
import torch

from slms.kernels.router import GATES, Router, choose, kth_largest


def make_router(d=24, p=6, h=10, k=2, gate="ramp", linear=False, seed=0, n_shared=0) -> Router:
    generator = torch.Generator().manual_seed(seed)
    first = (None, None) if linear else (torch.randn(h, d, generator=generator), torch.randn(h, generator=generator))
    width = d if linear else h
    last = (torch.randn(p, width, generator=generator) * 0.2, torch.randn(p, generator=generator))
    return Router(*first, *last, torch.randn(p, generator=generator), k, gate, torch.tensor(0.3), n_shared)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("n_shared", [0, 2])
def test_choice_and_gates(gate, linear, n_shared):
    router = make_router(gate=gate, linear=linear, k=2 + n_shared, n_shared=n_shared)
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(1))
    gates, chosen = choose(x, router)
    for t in range(9):
        features = x[t] if linear else (router.W_in @ x[t] + router.b_in).clamp(min=0)
        s = router.W_out @ features + router.b_out
        best = sorted(range(n_shared, 6), key=lambda q: -(s + router.bias)[q].item())[:2]
        total = sum(math.exp(s[q]) for q in best)
        assert set(chosen[t].nonzero().view(-1).tolist()) == {*range(n_shared), *best}
        assert gates[t, :n_shared].tolist() == [1.0] * n_shared
        for q in range(n_shared, 6):
            value = {"unit": 1.0, "sigmoid": s[q].sigmoid().item()}
            value["softmax"] = 2 * math.exp(s[q]) / total
            value["ramp"], value["blend"] = (1 + 0.3 * (value[kind] - 1) for kind in ("sigmoid", "softmax"))
            assert gates[t, q].item() == pytest.approx(value[gate] if q in best else 0.0, abs=1e-5)


def test_equal_scores_are_taken_from_the_left():
    flat = make_router(k=3)._replace(W_out=torch.zeros(6, 10), b_out=torch.zeros(6), bias=torch.zeros(6))
    assert choose(torch.zeros(2, 24), flat)[1].tolist() == [[True] * 3 + [False] * 3] * 2


def test_the_kth_largest_is_that_of_a_sorted_row():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 3, (40, 11), generator=generator).float()
    scores[:20] += torch.randn(20, 11, generator=generator)
    scores[3, 2], scores[4, :5], scores[5, 1], scores[6, 7] = torch.nan, torch.nan, torch.inf, -torch.inf
    ordered = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).sort(descending=True).values
    for k in range(1, 12):
        assert torch.equal(kth_largest(scores, k), ordered[:, k - 1 : k])
