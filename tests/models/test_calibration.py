"""Pathway statistics and the router's fit, against the definitions written out."""

import itertools

import pytest
import torch

from slms.models import calibration
from slms.models.anatomy import find_mlps
from slms.models.calibration import FACTORS, cool, fit_router, layer_inputs, pathway_statistics, trimmed
from slms.models.weights import MLPWeights, read_mlp
from slms.routing import PathwayRouter, RoutingConfig

OFFSETS = (0, 10, 19, 28, 37)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_statistics_equal_their_definitions(gated, centred):
    w = MLPWeights(
        W_in=draw(37, 8, seed=1),
        W_out=draw(37, 8, seed=2),
        b_in=draw(37, seed=3),
        b_out=draw(8),
        W_gate=draw(37, 8, seed=4) if gated else None,
        b_gate=draw(37, seed=5) if gated else None,
        activation="gelu",
    )
    x = draw(5000, 8, seed=6)
    up = x @ w.W_in.T + w.b_in
    h = torch.nn.functional.gelu(x @ w.W_gate.T + w.b_gate) * up if gated else torch.nn.functional.gelu(up)
    f = torch.stack([h[:, a:b] @ w.W_out[a:b] for a, b in itertools.pairwise(OFFSETS)], 1).double()
    got = pathway_statistics(w, x, OFFSETS, centred)
    torch.testing.assert_close(got.mean.double(), f.mean(0), atol=1e-4, rtol=1e-4)
    left_out = f - f.mean(0) if centred else f
    torch.testing.assert_close(got.norms.double(), left_out.norm(dim=-1), atol=1e-4, rtol=1e-4)
    root = draw(8, 8, seed=7)
    weighed = pathway_statistics(w, x, OFFSETS, centred, root)
    assert torch.equal(weighed.mean, got.mean)
    torch.testing.assert_close(weighed.norms.double(), (left_out @ root.double()).norm(dim=-1), atol=1e-3, rtol=1e-3)


def router(kind, p=6, d=12, **changes):
    torch.manual_seed(0)
    return PathwayRouter(d, RoutingConfig(n_pathways=p, k=3, router=kind, **changes))


@torch.no_grad()
def test_a_linear_router_recovers_linear_norms_exactly():
    x = draw(2000, 12) * torch.linspace(0.01, 30, 12) + 5  # badly scaled and far from the origin
    norms = 50 + (x / torch.linspace(0.01, 30, 12)) @ draw(12, 6, seed=1)
    r = router("linear")
    assert fit_router(r, x, norms, seed=0) > 0.9999
    predicted = r.norm_shift + r.norm_scale * r(x)
    torch.testing.assert_close(predicted, norms, atol=0.02, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_router_without_bias_is_the_best_that_has_none(kind):
    x = draw(2000, 12) * torch.linspace(0.01, 30, 12) + 5
    norms = draw(2000, 6, seed=1).abs() + x @ draw(12, 6, seed=2)
    r = router(kind, router_bias=False)
    fit_router(r, x, norms, seed=0, steps=20)
    inputs = x if r.hidden is None else r.hidden(x).relu()
    target = ((norms - r.norm_shift) / r.norm_scale).double()
    best = torch.linalg.lstsq(inputs.double(), target).solution
    error = [(inputs.double() @ w - target).square().mean().item() for w in (best, r.out.weight.double().T)]
    assert error[1] == pytest.approx(error[0], rel=1e-2)


@torch.no_grad()
def test_an_mlp_router_learns_what_a_linear_one_cannot():
    x = draw(8000, 12)
    norms = (x @ draw(12, 6, seed=1)).abs()
    linear, mlp = router("linear"), router("mlp", router_hidden=64)
    assert fit_router(linear, x, norms, seed=0) < 0.1
    assert fit_router(mlp, x, norms, seed=0) > 0.9
    fresh = draw(1000, 12, seed=9)
    best = (fresh @ draw(12, 6, seed=1)).abs().argmax(1)
    assert (mlp(fresh).argmax(1) == best).float().mean() > 0.85


@torch.no_grad()
@pytest.mark.parametrize("biased", [True, False])
def test_the_fit_is_the_same_in_chunks_of_any_size(monkeypatch, biased):
    x, norms = draw(100, 12) + 3, draw(100, 6, seed=1).abs()
    found = []
    for chunk in (100, 7):
        monkeypatch.setattr(calibration, "_CHUNK", chunk)
        r = router("linear", router_bias=biased)
        found.append((fit_router(r, x, norms, seed=0), r(x)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_fit_repeats_with_its_seed():
    x, norms = draw(500, 12), draw(500, 6, seed=1).abs()
    a, b, c = (router("mlp") for _ in range(3))
    for r, seed in ((a, 0), (b, 0), (c, 1)):
        fit_router(r, x, norms, seed=seed, steps=20)
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x))
    assert all(parameter.grad is None for parameter in a.parameters())


@torch.no_grad()
def test_scores_have_unit_variance_over_routed_pathways():
    x = draw(3000, 12)
    norms = 100 + 7 * x @ draw(12, 6, seed=1)
    norms[:, 0] = 1e4  # the shared pathway stands outside the competition
    r = router("linear", n_shared=1)
    fit_router(r, x, norms, seed=0)
    assert r(x)[:, 1:].std().item() == pytest.approx(1.0, rel=0.02)


@torch.no_grad()
def test_layer_inputs_are_the_mlps_inputs_of_every_token(tiny, tokens, monkeypatch):
    model, ids = tiny("gpt_neox"), tokens(5, 9)
    seen = {}
    for i, mlp in find_mlps(model).items():
        mlp.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, args[0]))
    model(ids)
    expected = {i: x.reshape(-1, 24) for i, x in seen.items()}
    monkeypatch.setattr("slms.models.calibration._FORWARD_TOKENS", 18)
    for memory in (2**31, 4 * ids.numel() * 24):  # all layers at once; one at a time
        monkeypatch.setattr("slms.models.calibration._MEMORY_BYTES", memory)
        got = dict(layer_inputs(model, [0, 2], ids))
        assert list(got) == [0, 2]
        for i, x in got.items():
            torch.testing.assert_close(x, expected[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layer_inputs_spread_over_more_blocks_than_needed(tiny, tokens, monkeypatch):
    monkeypatch.setattr("slms.models.calibration.MAX_TOKENS", 18)
    model, ids = tiny("llama"), tokens(7, 9)
    ((_, x),) = layer_inputs(model, [0], ids)
    ((_, ends),) = layer_inputs(model, [0], ids[[0, 6]])
    assert len(x) == 18
    torch.testing.assert_close(x, ends)
    assert read_mlp(find_mlps(model)[0]).W_in.shape[1] == x.shape[1]


@torch.no_grad()
def test_layer_inputs_that_are_not_finite_are_refused(tiny, tokens):
    model = tiny("llama")
    find_mlps(model)[0].down_proj.weight[0, 0] = torch.inf
    assert [i for i, _ in layer_inputs(model, [0], tokens(7, 9))] == [0]
    with pytest.raises(ValueError, match="layer 1 of the model reads NaN or infinity"):
        dict(layer_inputs(model, [0, 1], tokens(7, 9)))


def test_norms_of_massive_tokens_are_trimmed():
    norms = draw(1000, 8).sigmoid()
    massive = norms.clone()
    massive[::100, 3] = 1e4
    median, usual = massive.quantile(0.5), massive.quantile(0.84)
    assert torch.equal(trimmed(norms), norms) and trimmed(massive).max() == pytest.approx(4 * usual - 3 * median)
    others = torch.ones_like(massive, dtype=torch.bool)
    others[::100, 3] = False
    assert torch.equal(trimmed(massive)[others], massive[others])


@torch.no_grad()
def test_gates_are_cooled_to_where_the_output_changes_least():
    """The factor is the best of those tried; the choice and the predicted norms stay."""
    w = MLPWeights(
        W_in=draw(37, 12, seed=1),
        W_out=draw(37, 12, seed=2),
        b_in=None,
        b_out=None,
        W_gate=draw(37, 12, seed=4),
        b_gate=None,
        activation="silu",
    )
    x, sizes = draw(300, 12, seed=6), torch.tensor(OFFSETS).diff()
    r = router("linear", p=4, gate="softmax", router_bias=False)
    fit_router(r, x, pathway_statistics(w, x, OFFSETS, centred=False).norms, seed=0)
    weight, routes, norms = r.out.weight.clone(), r.route(x), r.norm_shift + r.norm_scale * r(x)
    h = torch.nn.functional.silu(x @ w.W_gate.T) * (x @ w.W_in.T)

    def error(factor):
        scores = (factor * x @ weight.T).masked_fill(~routes.chosen, -torch.inf)
        y = torch.zeros_like(x)
        for p, part in enumerate((h * 3 * scores.softmax(1).repeat_interleave(sizes, 1)).split(sizes.tolist(), 1)):
            y += part @ w.W_out[OFFSETS[p] : OFFSETS[p + 1]]
        return ((y - h @ w.W_out).norm(dim=1) / (h @ w.W_out).norm(dim=1)).mean().item()

    factor = cool(r, w, OFFSETS, x)
    assert factor in FACTORS and factor < 1
    assert error(factor) == pytest.approx(min(map(error, FACTORS)), rel=1e-4) and error(factor) < 0.95 * error(1)
    torch.testing.assert_close(r.out.weight, factor * weight)
    assert torch.equal(r.route(x).chosen, routes.chosen)
    torch.testing.assert_close(r.norm_shift + r.norm_scale * r(x), norms, rtol=1e-4, atol=1e-4)
