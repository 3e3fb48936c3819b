"""The neurons that are kept and the refitted down-projection, against least squares and against trying all sets."""

import itertools

import pytest
import torch
from torch import Tensor

from slms.models.pruning import neuron_moments, refitted, worth_keeping
from slms.models.weights import MLPWeights, neurons

F, D, N = 9, 5, 6000


def mlp(gated: bool = False, seed: int = 0) -> MLPWeights:
    g = torch.Generator().manual_seed(seed)
    W_in, W_out, W_gate = torch.randn(3, F, D, generator=g)
    b_in, b_gate = torch.randn(2, F, generator=g)
    b_out = None if gated else torch.randn(D, generator=g)
    return MLPWeights(W_in, W_out, b_in, b_out, W_gate if gated else None, b_gate if gated else None, "gelu")


def inputs(seed: int = 0) -> Tensor:
    """Inputs with correlated coordinates and a mean of their own."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g) @ torch.randn(D, D, generator=g) + torch.randn(D, generator=g)


def output(w: MLPWeights, x: Tensor) -> Tensor:
    y = neurons(w, x).double() @ w.W_out.double()
    return y if w.b_out is None else y + w.b_out.double()


def least_squares(w: MLPWeights, x: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """The best output [n, d] of the kept neurons with a free W_out and b_out, and its squared error a token."""
    h, y = neurons(w, x).double()[:, kept], output(w, x)
    a = torch.cat([h, h.new_ones(len(h), 1)], 1)
    best = a @ torch.linalg.lstsq(a, y).solution
    return best, float((best - y).square().sum(1).mean())


def test_moments_are_those_of_all_tokens_at_once():
    w, x = mlp(), inputs()
    h = neurons(w, x).double()
    got = neuron_moments(w, x)
    torch.testing.assert_close(got.mean, h.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.covariance, h.T.cov(correction=0), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gated", [False, True])
def test_the_refit_is_the_least_squares_solution(gated):
    w, x, kept = mlp(gated), inputs(), [0, 3, 4, 8]
    small = refitted(w, neuron_moments(w, x), torch.tensor(kept), ridge=0.0)
    assert small.W_in.shape == (4, D) and small.b_out is not None
    best, _ = least_squares(w, x, kept)
    torch.testing.assert_close(output(small, x), best, rtol=1e-4, atol=1e-4)
    near = refitted(w, neuron_moments(w, x), torch.tensor(kept), ridge=1e-6)
    torch.testing.assert_close(output(near, x), best, rtol=1e-3, atol=1e-3)


def test_all_neurons_kept_change_nothing():
    w, x = mlp(), inputs()
    same = refitted(w, neuron_moments(w, x), torch.arange(F))
    for before, after in zip(w, same, strict=True):
        assert before is after or isinstance(before, str) or before is None or torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [4, 6, 8])
def test_the_set_loses_hardly_more_than_the_best_of_all_sets(seed, width):
    """One neuron to drop: the best. More: one at a time is greedy, and at most a quarter worse here."""
    w, x = mlp(seed=seed), inputs(seed)
    kept = worth_keeping(neuron_moments(w, x).covariance, w.W_out, width, ridge=0.0).tolist()
    errors = {s: least_squares(w, x, list(s))[1] for s in itertools.combinations(range(F), width)}
    best = min(errors.values())
    assert errors[tuple(kept)] <= best * (1.0001 if width == 8 else 1.25)


def test_the_loss_that_decides_is_that_of_the_refitted_rest():
    """Each step must drop the neuron without which least squares over the rest loses least."""
    w, x = mlp(seed=5), inputs(5)
    covariance, rest = neuron_moments(w, x).covariance, set(range(F))
    for width in range(F - 1, 0, -1):
        rest.remove(min(rest, key=lambda j: least_squares(w, x, sorted(rest - {j}))[1]))
        assert worth_keeping(covariance, w.W_out, width, ridge=0.0).tolist() == sorted(rest)


def test_dead_and_doubled_neurons_go_first_and_cost_nothing():
    w, x = mlp(seed=2), inputs(2)
    w.W_in[1], w.b_in[1] = w.W_in[0], w.b_in[0]  # twice the same neuron
    w.W_in[2], w.b_in[2] = 0.0, 0.7  # a constant one
    moments = neuron_moments(w, x)
    kept = worth_keeping(moments.covariance, w.W_out, F - 2)
    assert 2 not in kept and {0, 1} - set(kept.tolist())
    torch.testing.assert_close(output(refitted(w, moments, kept, ridge=1e-6), x), output(w, x), rtol=1e-3, atol=1e-3)
