"""Gates that choose twice, and by thresholds, against their definitions, in MLPs and in models."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import slms
from slms.kernels import gate_mlp_reference
from slms.kernels.activations import ACTIVATIONS
from slms.lit.balances import Budgets
from slms.measure.dynamick import set_routed_rule
from slms.models.activations import mlp_inputs
from slms.models.anatomy import find_mlps
from slms.models.convert import route
from slms.models.flops import mlp_flops
from slms.models.routed import choose_by, record_routes, routed_modules, set_k
from slms.models.weights import neurons, read_mlp
from slms.routing import RoutingConfig
from tests.models.conftest import D_FF, tiny, tokens  # noqa: F401  fixtures
from tests.routing.test_gate import ALONE, GATED


@torch.no_grad()
@pytest.mark.parametrize("family", GATED)
def test_a_second_choice_leaves_the_largest_activations(tiny, tokens, tmp_path, family):  # noqa: F811
    """Of a token's k neurons the k_out of largest |h| · importance go through W_out, observed, saved or not."""
    model, ids = tiny(family), tokens(2, 9)
    routed = route(model, RoutingConfig(**ALONE, k=12, k_out=5), tokens(4, 16))
    mlp, weights = find_mlps(routed)[1], read_mlp(find_mlps(model)[1])
    mlp.router.whole_above.fill_(math.inf)
    x = torch.randn(3, weights.W_in.shape[1], generator=torch.Generator().manual_seed(1))
    h = neurons(weights, x)
    gate = ACTIVATIONS[weights.activation](F.linear(x, weights.W_gate, weights.b_gate))
    want = torch.zeros(3, weights.W_out.shape[1]) if weights.b_out is None else weights.b_out.repeat(3, 1)
    for t in range(3):
        best = (gate[t].abs() * mlp.router.scale).argsort(descending=True)[:12].tolist()
        for i in sorted(best, key=lambda i: -abs(h[t, i] * mlp.router.out_scale[i]))[:5]:
            want[t] += h[t, i] * weights.W_out[i]
    torch.testing.assert_close(mlp(x), want, atol=1e-4, rtol=1e-4)
    with record_routes(routed) as routes:
        torch.testing.assert_close(mlp(x), want, atol=1e-4, rtol=1e-4)
    assert routes["L1.mlp"].chosen.sum(1).tolist() == [12] * 3
    assert mlp.weigh_dense(h, routes["L1.mlp"]).count_nonzero(1).tolist() == [5] * 3
    slms.save_model(routed, None, tmp_path / "model")
    torch.testing.assert_close(slms.load_model(tmp_path / "model").model(ids).logits, routed(ids).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    assert torch.equal(routed.generate(ids, **options), routed.generate(ids, use_cache=False, **options))
    mlp.k = D_FF
    assert mlp.k_out is None
    torch.testing.assert_close(mlp(x), find_mlps(model)[1](x), atol=1e-5, rtol=1e-5)


def test_a_second_choice_saves_down_projections(tiny, tokens):  # noqa: F811
    mlp = find_mlps(route(tiny("llama"), RoutingConfig(**ALONE, k=12, k_out=5), tokens(4, 16)))[0]
    found = mlp_flops(mlp)
    assert found.run == pytest.approx(found.per_neuron * (D_FF + 12 + 5) / 3)
    assert "and of these 5 by their activations" in mlp.summary()
    mlp.k = 24
    assert mlp.k_out == 10 and "and of these 10 by their activations" in mlp.summary()
    assert mlp_flops(mlp).run == pytest.approx(found.per_neuron * (D_FF + 24 + 10) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k_out=6), r"`routing.k_out` is 6; it must be from 1 to `routing.k` \(5\)"),
        (dict(k_out=0), r"`routing.k_out` is 0; it must be from 1 to `routing.k`"),
        (dict(k=D_FF, k_out=5), r"`routing.k_out` is 5; .* and `routing.k` below `routing.n_pathways` \(37\)"),
        (dict(k_out=2, router="linear"), r"`routing.k_out` is 2; .* with `routing.router` gate, not linear"),
        (
            dict(k_out=2, n_pathways=6),
            r"`routing.k_out` is 2; it needs single neurons, `routing.n_pathways` \d+, not 6",
        ),
    ],
)
def test_a_second_choice_that_cannot_be(tiny, tokens, change, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        route(tiny("llama"), RoutingConfig(**ALONE | dict(k=5) | change), tokens(4, 16))


@torch.no_grad()
@pytest.mark.parametrize("k_out", [None, 5])
@pytest.mark.parametrize("n", [D_FF, 6])
def test_thresholds_choose_k_on_average(tiny, tokens, tmp_path, n, k_out):  # noqa: F811
    """Under `controlled` tokens run what scores as much as the threshold, observed or not, saved or not."""
    if k_out is not None and n != D_FF:
        pytest.skip("a second choice is of single neurons")
    model, ids, k = tiny("llama"), tokens(2, 9), n // 2
    options = {"rule": "controlled", "n_pathways": n, "k": k, "k_out": k_out}
    routed = route(model, RoutingConfig(**ALONE | options), tokens(32, 16)).eval()
    mlp = find_mlps(routed)[0]  # its inputs are the dense model's
    assert mlp.router.least > 0
    for rows in (slice(0, 64), slice(0, 3)):
        with mlp_inputs(model, [0]) as inputs:
            model(tokens(32, 16))
        x = inputs[0][rows]
        with record_routes(routed) as routes:
            observed = mlp(x)
        chosen = routes["L0.mlp"].chosen
        torch.testing.assert_close(mlp(x), observed, atol=1e-5, rtol=1e-4)
        plain = gate_mlp_reference(mlp.gate_call(x, mlp.router)) + mlp.b_out
        torch.testing.assert_close(plain, observed, atol=1e-5, rtol=1e-4)
        mlp.train()
        torch.testing.assert_close(mlp(x), observed, atol=1e-5, rtol=1e-4)
        mlp.eval()
        assert torch.equal(chosen, mlp.routes(x).scores >= mlp.router.least)
    x = inputs[0]
    assert mlp.routes(x).chosen.float().mean().item() == pytest.approx(k / n, abs=0.02)
    if k_out is not None:
        h = neurons(read_mlp(find_mlps(model)[0]), x)
        assert (mlp.weigh_dense(h, mlp.routes(x)) != 0).float().mean().item() == pytest.approx(k_out / n, abs=0.02)
    slms.save_model(routed, None, tmp_path / "model")
    torch.testing.assert_close(slms.load_model(tmp_path / "model").model(ids).logits, routed(ids).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    assert torch.equal(routed.generate(ids, **options), routed.generate(ids, use_cache=False, **options))
    set_k(routed, n)
    torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    with record_routes(routed) as routes:
        torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert all(found.chosen.all() for found in routes.values())


@torch.no_grad()
@pytest.mark.parametrize("rule", ["top_k", "controlled"])
def test_another_choice_sends_as_many_neurons_through_w_out(tiny, tokens, rule):  # noqa: F811
    """What stands in for the gates, as a random router of the same loads does, costs what they cost."""
    routed = route(tiny("llama"), RoutingConfig(**ALONE, rule=rule, k=12, k_out=6), tokens(32, 16)).eval()
    generator = torch.Generator().manual_seed(0)

    def another(x, routes):
        return routes.chosen.gather(1, torch.rand(routes.chosen.shape, generator=generator).argsort(1))

    through = []
    for choosers in ({}, dict.fromkeys(routed_modules(routed), another)):
        with choose_by(routed, choosers), record_routes(routed) as routes:
            routed(tokens(32, 16))
        through.append(torch.stack([found.through.float().mean() for found in routes.values()]))
    torch.testing.assert_close(through[1], through[0], rtol=0.1, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("off", [0.3, 3.0])
def test_training_brings_the_thresholds_back(tiny, tokens, off):  # noqa: F811
    options = {"rule": "controlled", "k": D_FF // 2, "k_out": D_FF // 4}
    routed = route(tiny("llama"), RoutingConfig(**ALONE | options), tokens(32, 16)).train()
    budgets = Budgets()
    budgets.follow(routed)
    for mlp in routed_modules(routed).values():
        mlp.router.least.mul_(off)
        mlp.router.least_out.mul_(off)
    routed(tokens(1, 3))
    assert all(mlp.router.counts is not None for mlp in routed_modules(routed).values()), "few tokens count too"
    for step in range(100):
        routed(tokens(16, 16, seed=step))
        ran = [mlp.router.counts.tolist() for mlp in routed_modules(routed).values()]
        budgets.step(routed)
    for chosen, kept, possible in ran:
        assert chosen / possible == pytest.approx(0.5, abs=0.05)
        assert kept / possible == pytest.approx(0.25, abs=0.05)
    assert all(mlp.router.counts is None for mlp in routed_modules(routed).values())


@torch.no_grad()
def test_thresholds_never_choose_what_adds_nothing(tiny, tokens):  # noqa: F811
    """Where fewer neurons than k are not 0, as a ReLU leaves them, those run, and training does not lose them."""
    model = tiny("llama")
    model.config.hidden_act = "relu"
    for mlp in find_mlps(model).values():
        mlp.act_fn = nn.ReLU()
    routed = route(model, RoutingConfig(**ALONE, rule="controlled", k=36, k_out=35), tokens(8, 16))
    budgets, ids = Budgets(), tokens(2, 9)
    budgets.follow(routed)
    for _ in range(3):
        with record_routes(routed.eval()) as routes:
            torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(found.chosen, found.scores > 0) for found in routes.values())
        routed.train()(ids)
        budgets.step(routed)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["top_k", "controlled"])
def test_thresholds_at_another_density(tiny, tokens, rule):  # noqa: F811
    options = {"rule": rule, "k": D_FF // 2, "k_out": D_FF // 4}
    routed, ids = route(tiny("llama"), RoutingConfig(**ALONE | options), tokens(8, 16)).eval(), tokens(32, 16)
    set_routed_rule(routed, "controlled", 0.8, ids, 8)
    with record_routes(routed) as routes:
        routed(ids)
    for found in routes.values():
        assert found.chosen.float().mean().item() == pytest.approx(round(0.8 * D_FF) / D_FF, abs=0.03)
