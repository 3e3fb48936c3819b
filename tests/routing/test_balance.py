import pytest
import torch

from slms.routing import BalanceConfig, GlobalBalance, bias_update, z_loss
from slms.routing.rules import select

N, P, K = 24, 5, 2


def routes(n: int = N, p: int = P, k: int = K, seed: int = 0, skew: float = 1.0):
    scores = torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores += skew * torch.arange(p)
    return select(scores.requires_grad_(), k=k)


def frequencies(chosen: torch.Tensor) -> torch.Tensor:
    counts = torch.tensor([sum(int(c) for c in column) for column in chosen.T.tolist()], dtype=torch.float64)
    return counts / counts.sum()


def test_gradient_against_the_formula():
    """L = P Σ f_p mean_n softmax(s_n)_p with f fixed: ∂L/∂s_nq = (P/N) prob_nq (f_q − Σ_p f_p prob_np)."""
    r = routes()
    loss = GlobalBalance(P).eval()(r.probs, r.chosen)
    (gradient,) = torch.autograd.grad(loss, r.scores)
    f, probs = frequencies(r.chosen), r.scores.detach().softmax(-1)
    torch.testing.assert_close(loss, P * (f * probs.mean(0)).sum())
    expected = P / N * probs * (f - (probs * f).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_floor_is_exactly_one_at_uniform_whatever_k(k):
    """Not k: f is divided by the number of choices, not of tokens (OLMoE issue 45)."""
    chosen = torch.stack([torch.arange(P).roll(i) < k for i in range(2 * P)])
    probs = torch.full((2 * P, P), 1 / P)
    assert GlobalBalance(P).eval()(probs, chosen).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, P])
def test_collapse_costs_p_over_k(k):
    chosen, probs = torch.zeros(N, P, dtype=torch.bool), torch.zeros(N, P)
    chosen[:, :k] = True
    probs[:, 0] = 1.0
    assert GlobalBalance(P).eval()(probs, chosen).item() == pytest.approx(P / k)
    probs[:, 0] = 0.0
    probs[:, :k] = 1 / k  # the k at equal parts
    assert GlobalBalance(P).eval()(probs, chosen).item() == pytest.approx(P / k)


def test_frequencies_are_hard_counts_not_probabilities():
    chosen = torch.zeros(N, P, dtype=torch.bool)
    chosen[:, 0] = True
    probs = torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15]).expand(N, -1)
    loss = GlobalBalance(P).eval()(probs, chosen).item()
    assert loss == pytest.approx(P * 0.4)
    assert loss != pytest.approx(P * (probs[0] ** 2).sum().item(), abs=0.1)


def test_padding_does_not_count():
    r, mask = routes(), torch.arange(N) % 3 > 0
    r.scores.data[~mask] = torch.tensor([100.0, 0, 0, 0, 0], dtype=torch.float64)
    padded = select(r.scores, k=K)
    real = select(r.scores[mask], k=K)
    module = GlobalBalance(P).eval()
    masked = module(padded.probs, padded.chosen, mask)
    torch.testing.assert_close(masked, module(real.probs, real.chosen))
    assert abs(masked - module(padded.probs, padded.chosen)) > 0.05
    torch.testing.assert_close(z_loss(padded.scores, mask), z_loss(real.scores))
    (gradient,) = torch.autograd.grad(masked + z_loss(padded.scores, mask), r.scores)
    assert not gradient[~mask].any() and gradient[mask].any()


def test_a_batch_of_padding_only_is_zero_not_nan():
    r, mask = routes(), torch.zeros(N, dtype=torch.bool)
    assert GlobalBalance(P)(r.probs, r.chosen, mask).item() == 0.0
    assert z_loss(r.scores, mask).item() == 0.0


def test_frequencies_cover_all_micro_batches_of_an_optimizer_step():
    """Not the last micro-batch alone (ms-swift issue 6787)."""
    first, second, third = routes(seed=1, skew=3.0), routes(seed=2, skew=-3.0), routes(seed=3)
    module = GlobalBalance(P, momentum=0.0)
    module(first.probs, first.chosen)
    module(second.probs, second.chosen)
    f = frequencies(torch.cat([first.chosen, second.chosen]))
    torch.testing.assert_close(module.step().double(), f, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        module(third.probs, third.chosen), P * (f * third.probs.mean(0)).sum(), rtol=1e-6, atol=0
    )
    module.step()
    alone = P * (frequencies(third.chosen) * third.probs.mean(0)).sum()
    torch.testing.assert_close(module(third.probs, third.chosen), alone, rtol=1e-6, atol=0)


def test_how_a_global_batch_is_cut_makes_no_difference():
    """One micro-batch a step, or four: with counts of the step under way their gradients would differ."""
    past, now = routes(n=8 * N, seed=1, skew=3.0), routes(n=8 * N, seed=2, skew=-3.0)
    gradients = []
    for cuts in (1, 4):
        module = GlobalBalance(P)
        for part in past.chosen.chunk(cuts):
            module(part.double(), part)
        module.step()
        probs = now.scores.softmax(-1).chunk(cuts)
        loss = sum(module(p, c) for p, c in zip(probs, now.chosen.chunk(cuts), strict=True)) / cuts
        gradients.append(torch.autograd.grad(loss, now.scores)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert gradients[0].abs().max() > 1e-5


def test_the_momentum_buffer_enters_the_loss():
    """The first implementation updated it and never used it."""
    past, later, now = routes(seed=1, skew=3.0), routes(seed=2, skew=-3.0), routes(seed=3)
    module = GlobalBalance(P, momentum=0.9)
    for r in (past, later):
        module(r.probs, r.chosen)
        module.step()
    loss = module(now.probs, now.chosen)
    weights = torch.tensor([0.9 * 0.1, 0.1], dtype=torch.float64) / 0.19
    f = weights[0] * frequencies(past.chosen) + weights[1] * frequencies(later.chosen)
    torch.testing.assert_close(loss, P * (f * now.probs.mean(0)).sum(), rtol=1e-6, atol=0)


def test_the_running_mean_is_not_biased_to_zero_at_the_start():
    module, r = GlobalBalance(P, momentum=0.99), routes()
    torch.testing.assert_close(module(r.probs, r.chosen).item(), 1.0)  # nothing is known yet: uniform
    for _ in range(3):
        module.step()
        loss = module(r.probs, r.chosen)
        torch.testing.assert_close(loss, P * (frequencies(r.chosen) * r.probs.mean(0)).sum(), rtol=1e-5, atol=0)


def test_only_probabilities_carry_gradient_and_calls_do_not_chain():
    module = GlobalBalance(P)
    for _ in range(2):  # a graph kept in a buffer would raise at the second backward
        r = routes()
        module(r.probs, r.chosen).backward()
        module.step()
        assert r.scores.grad is not None
    assert not any(buffer.requires_grad for buffer in module.buffers())


def test_layers_pooled_together_would_hide_their_collapse():
    """Why there is one module per layer (transformers issues 28255 and 31464 concatenate them)."""
    chosen = [torch.zeros(N, 2, dtype=torch.bool) for _ in range(2)]
    chosen[0][:, 0], chosen[1][:, 1] = True, True
    each = [GlobalBalance(2).eval()(c.float(), c).item() for c in chosen]
    pooled = torch.cat(chosen)
    assert each == [2.0, 2.0] and GlobalBalance(2).eval()(pooled.float(), pooled).item() == 1.0


def test_shared_pathways_are_left_out():
    scores = torch.randn(N, P, dtype=torch.float64)
    r = select(scores, k=3, n_shared=1)
    alone = select(scores[:, 1:], k=2)
    module, reference = GlobalBalance(P, n_shared=1), GlobalBalance(P - 1)
    for _ in range(2):
        torch.testing.assert_close(module(r.probs, r.chosen), reference(alone.probs, alone.chosen))
        reference.step()
        module.step()
    module(r.probs, r.chosen)
    assert module.step().shape == (P - 1,)
    torch.testing.assert_close(z_loss(scores, n_shared=1), z_loss(scores[:, 1:]))


def test_evaluation_stores_nothing():
    module, r = GlobalBalance(P).eval(), routes()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    loss = module(r.probs, r.chosen)
    torch.testing.assert_close(loss, P * (frequencies(r.chosen) * r.probs.mean(0)).sum(), rtol=1e-6, atol=0)
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in before.items())


def test_a_step_without_a_batch_changes_nothing():
    module, r = GlobalBalance(P), routes()
    module(r.probs, r.chosen)
    module.step()
    before = module.average.clone()
    assert not module.step().any()
    assert torch.equal(module.average, before)


def test_state_is_saved_so_that_a_resumed_run_goes_on_alike():
    module, r = GlobalBalance(P), routes()
    module(r.probs, r.chosen)
    module.step()
    module(r.probs, r.chosen)
    copy = GlobalBalance(P)
    copy.load_state_dict(module.state_dict())
    other = routes(seed=9)
    assert torch.equal(copy(other.probs, other.chosen), module(other.probs, other.chosen))


def test_z_loss_from_the_definition():
    scores = torch.randn(N, P, dtype=torch.float64)
    expected = sum(torch.log(torch.exp(row).sum()) ** 2 for row in scores) / N
    torch.testing.assert_close(z_loss(scores), expected)


def test_bias_update_lifts_the_idle_and_stays_centred():
    bias = torch.zeros(4)
    bias_update(bias, torch.tensor([0.7, 0.1, 0.1, 0.1]), rate=0.01)
    torch.testing.assert_close(bias, torch.tensor([-0.015, 0.005, 0.005, 0.005]))
    for _ in range(50):
        bias_update(bias, torch.tensor([0.7, 0.1, 0.1, 0.1]), rate=0.01)
    assert bias.sum().abs() < 1e-6
    shared = torch.zeros(4)
    bias_update(shared, torch.tensor([0.6, 0.2, 0.2]), rate=0.01)
    assert shared[0] == 0 and shared[1:].sum().abs() < 1e-8 and shared[1] < 0


def test_bias_balances_a_skewed_router():
    scores = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 2, 8)
    bias = torch.zeros(8)
    loads = []
    for _ in range(300):
        load = select(scores, k=2, bias=bias).chosen.float().mean(0) / 2
        loads.append(load)
        bias_update(bias, load, rate=0.02)
    assert loads[0].max() > 0.25 and loads[-1].max() < 0.14


@pytest.mark.parametrize("steps", [1, 2, 3, 400])
def test_the_schedule_reaches_its_end_on_the_last_step(steps):
    """start + (end − start)·epoch/epochs, as first implemented, never does."""
    cfg = BalanceConfig(weight=0.1, weight_start=0.01)
    values = [cfg.weight_at(step, steps) for step in range(steps)]
    assert values[-1] == 0.1 and values == sorted(values)
    assert steps == 1 or values[0] == 0.01
    assert cfg.weight_at(10 * steps, steps) == 0.1
    short = BalanceConfig(weight=0.1, weight_start=0.01, weight_steps=5)
    assert short.weight_at(4, 400) == 0.1 and short.weight_at(3, 400) < 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, r"`balance.weight` is -1.0"),
        ({"weight_steps": 0}, r"`balance.weight_steps` is 0"),
        ({"momentum": 1.0}, r"`balance.momentum` is 1.0"),
    ],
)
def test_bad_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        BalanceConfig(**fields)


def test_the_loss_of_groups_is_the_mean_of_what_each_would_have_alone():
    found = [routes(p=3, seed=g, skew=g) for g in range(2)]
    probs, chosen = torch.cat([r.probs for r in found], 1), torch.cat([r.chosen for r in found], 1)
    together, alone = GlobalBalance(6, 0.5, n_groups=2), [GlobalBalance(3, 0.5) for _ in found]
    for _ in range(2):  # the second step knows the frequencies of the first
        losses = torch.stack([balance(r.probs, r.chosen) for balance, r in zip(alone, found, strict=True)])
        torch.testing.assert_close(together(probs, chosen), losses.mean())
        torch.testing.assert_close(together.step(), torch.cat([balance.step() for balance in alone]))
