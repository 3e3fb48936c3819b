from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from slms.models import routed_mlp
from slms.models.partition import partition
from slms.models.routed import record_routes, routed_modules, set_k, set_ramp
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig

D, F, P, K = 6, 22, 4, 2  # 22 neurons in pathways of 6, 6, 5, 5
GATES = ("unit", "softmax", "sigmoid", "graded", "blend", "ramp")


def dense_weights(gated: bool, biased: bool, seed: int = 0) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    return {
        "W_in": draw(F, D),
        "W_out": draw(F, D),
        "W_gate": draw(F, D) if gated else None,
        "b_in": draw(F) if biased else None,
        "b_gate": draw(F) if gated and biased else None,
        "b_out": draw(D) if biased else None,
    }


def neurons(w: dict, x: torch.Tensor) -> torch.Tensor:
    """Hidden activations [n, f] from the definition, with GELU."""
    up = x @ w["W_in"].T + (0 if w["b_in"] is None else w["b_in"])
    if w["W_gate"] is None:
        return nn.functional.gelu(up)
    return nn.functional.gelu(x @ w["W_gate"].T + (0 if w["b_gate"] is None else w["b_gate"])) * up


def dense_mlp(w: dict, x: torch.Tensor) -> torch.Tensor:
    return neurons(w, x) @ w["W_out"] + (0 if w["b_out"] is None else w["b_out"])


def routed(gated: bool = False, biased: bool = True, permutation: torch.Tensor | None = None, **fields) -> RoutedMLP:
    torch.manual_seed(0)
    cfg = RoutingConfig(**{"n_pathways": P, "k": K, "router_hidden": 8, **fields})
    mlp = RoutedMLP(
        D, F, cfg, activation="gelu", layer_index=3, gated=gated, bias_in=biased, bias_out=biased, dropout=0.0
    )
    if permutation is None:
        permutation = partition("random", mlp.W_in, None, P, seed=1).permutation
    mlp.load_dense(**dense_weights(gated, biased), permutation=permutation)
    return mlp


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gate", ["unit", "graded", "blend", "ramp"])
def test_with_every_pathway_it_is_the_dense_mlp(gated, biased, gate):
    mlp, x = routed(gated, biased, gate=gate), torch.randn(3, 7, D)
    mlp.k = P
    torch.testing.assert_close(mlp(x), dense_mlp(dense_weights(gated, biased), x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_output_from_the_definition(gated, gate):
    """Each token sums gate · output over its chosen pathways, in the dense model's own neuron numbering."""
    mlp, x, w = routed(gated, gate=gate), torch.randn(2, 5, D), dense_weights(gated, True)
    with record_routes(mlp) as seen:
        y = mlp(x)
    routes, hidden = seen["L3.mlp"], neurons(w, x.flatten(0, 1))
    for token in range(10):
        expected = w["b_out"].clone()
        for p, (a, b) in enumerate(pairwise(mlp.offsets)):
            if routes.chosen[token, p]:
                mine = mlp.permutation[a:b]
                expected += routes.gates[token, p] * hidden[token, mine] @ w["W_out"][mine]
        torch.testing.assert_close(y.flatten(0, 1)[token], expected, rtol=0, atol=1e-5)
    assert (routes.chosen.sum(-1) == K).all()


def test_mean_compensation_stands_in_for_what_was_skipped():
    mlp, plain, x = routed(mean_compensation=True), routed(), torch.randn(9, D)
    mlp.router.load_state_dict(plain.router.state_dict())
    mlp.mean_out.copy_(torch.randn(P, D))
    with record_routes(mlp) as seen:
        difference = mlp(x) - plain(x)
    skipped = (~seen["L3.mlp"].chosen).float()
    torch.testing.assert_close(difference, skipped @ mlp.mean_out, rtol=0, atol=1e-5)
    mlp.k = P
    torch.testing.assert_close(mlp(x), dense_mlp(dense_weights(False, True), x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_against_the_dense_mlp(gated):
    mlp, w, x = routed(gated), dense_weights(gated, True), torch.randn(11, D)
    mlp.k = P
    w = {name: t if t is None else t.requires_grad_() for name, t in w.items()}
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    upstream = torch.randn(11, D)
    (mlp(inputs[0]) * upstream).sum().backward()
    (dense_mlp(w, inputs[1]) * upstream).sum().backward()
    for name, tensor in w.items():
        if tensor is not None:
            expected = tensor.grad if name == "b_out" else tensor.grad[mlp.permutation]
            torch.testing.assert_close(getattr(mlp, name).grad, expected, rtol=1e-4, atol=1e-5)
    assert mlp.router.out.weight.grad.abs().sum() > 0  # straight through, though every gate is 1


def test_a_skipped_pathway_receives_no_gradient():
    mlp = routed(router="linear")
    with torch.no_grad():
        mlp.router.out.weight.zero_()
        mlp.router.out.bias.copy_(-torch.arange(float(len(mlp.offsets) - 1)))  # every token chooses the first K
    mlp(torch.randn(5, D)).square().sum().backward()
    a, b = mlp.offsets[K], mlp.offsets[-1]
    assert mlp.W_in.grad[:a].any() and not mlp.W_in.grad[a:b].any() and not mlp.W_out.grad[a:b].any()


@pytest.mark.parametrize("gate", ["unit", "graded"])
def test_autocast_keeps_the_inputs_dtype_and_the_routers_precision(gate):
    mlp, x = routed(gate=gate), torch.randn(40, D)
    with record_routes(mlp) as seen:
        exact, scores = mlp(x), seen["L3.mlp"].scores
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = mlp(x)
    assert y.dtype == torch.float32 and seen["L3.mlp"].scores.dtype == torch.float32
    torch.testing.assert_close(seen["L3.mlp"].scores, scores, rtol=0, atol=0)
    torch.testing.assert_close(y, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(y, exact)
    half = mlp.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_k_can_be_set_within_its_limits():
    mlp = routed(n_shared=1)
    mlp.k = 3
    with record_routes(mlp) as seen:
        mlp(torch.randn(8, D))
    assert (seen["L3.mlp"].chosen.sum(-1) == 3).all() and seen["L3.mlp"].chosen[:, 0].all()
    for bad in (0, 1, 5):
        with pytest.raises(ValueError, match=rf"k is {bad}; it must be from 2 to `routing.n_pathways` \(4\)"):
            mlp.k = bad


def test_set_k_and_recording_over_a_model():
    model = nn.Sequential(nn.Linear(D, D), routed(), routed())
    model[2].layer_index = 1
    assert list(routed_modules(model)) == ["L1.mlp", "L3.mlp"]
    set_k(model, 3)
    x = torch.randn(2, 4, D)
    with record_routes(model) as routes:
        assert routes == {}
        model(x)
        first = dict(routes)
        model(x + 1)
    assert set(routes) == {"L1.mlp", "L3.mlp"} and routes["L3.mlp"].scores.shape == (8, P)
    assert routes["L3.mlp"] is not first["L3.mlp"] and (routes["L1.mlp"].chosen.sum(-1) == 3).all()
    assert routes["L3.mlp"].probs.requires_grad
    assert all(layer.recorder is None for layer in routed_modules(model).values())


def test_set_ramp_moves_ramp_gates_only_and_is_saved():
    model = nn.ModuleList([routed(gate="ramp"), routed(gate="unit")])
    model[1].layer_index = 1
    set_ramp(model, 0.25)
    assert model[0].router.ramp.item() == 0.25 and model[1].router.ramp is None
    assert model.state_dict()["0.router.ramp"].item() == 0.25 and "1.router.ramp" not in model.state_dict()
    with record_routes(model[0]) as seen:
        model[0](torch.randn(5, D))
    expected = torch.lerp(torch.ones(5, P), seen["L3.mlp"].scores.sigmoid(), 0.25)
    torch.testing.assert_close(seen["L3.mlp"].gates[seen["L3.mlp"].chosen], expected[seen["L3.mlp"].chosen])


def test_recording_ends_with_an_exception_and_nests():
    mlp, x = routed(), torch.randn(2, D)
    with pytest.raises(RuntimeError, match="stop"), record_routes(mlp):
        raise RuntimeError("stop")
    assert mlp.recorder is None
    with record_routes(mlp) as outer:
        with record_routes(mlp) as inner:
            mlp(x)
        assert set(inner) == {"L3.mlp"} and not outer
        mlp(x)
    assert set(outer) == {"L3.mlp"}


def test_recording_is_not_doubled_by_recomputed_activations():
    """torchtitan issue 4772: with activation checkpointing the forward runs twice."""
    mlp, calls = routed(), []
    mlp.recorder = calls.append
    x = torch.randn(4, D, requires_grad=True)
    with record_routes(mlp) as routes:
        y = torch.utils.checkpoint.checkpoint(mlp, x, use_reentrant=False)
        before = routes["L3.mlp"]
        y.sum().backward()
    assert len(routes) == 1 and torch.equal(before.chosen, routes["L3.mlp"].chosen)
    assert calls == [] and mlp.recorder is not None


def test_state_survives_saving():
    mlp, other, x = routed(mean_compensation=True), routed(mean_compensation=True), torch.randn(5, D)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_()
        mlp.mean_out.normal_()
    other.load_state_dict(mlp.state_dict())
    assert torch.equal(mlp(x), other(x)) and torch.equal(mlp.permutation, other.permutation)
    names = {"W_in", "W_out", "b_in", "b_out", "permutation", "mean_out"}
    assert {key for key in mlp.state_dict() if not key.startswith("router.")} == names


def test_dropout_is_the_dense_models():
    mlp = RoutedMLP(D, F, RoutingConfig(n_pathways=P, k=P), activation="relu", layer_index=0, dropout=0.5)
    x = torch.randn(200, D)
    assert (mlp(x) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (mlp.eval()(x) == 0).float().mean() < 0.01


def test_weights_of_the_wrong_kind_are_refused():
    w = dense_weights(gated=True, biased=True)
    with pytest.raises(AssertionError, match="W_gate"):
        routed(gated=False).load_dense(**w, permutation=torch.arange(F))


@pytest.mark.parametrize("rule", ["top_k", "top_p", "threshold"])
def test_compiles_as_one_graph_with_its_gradients(rule):
    mlp, x = routed(rule=rule, gate="graded"), torch.randn(9, D)
    expected = torch.autograd.grad(mlp(x).square().sum(), mlp.W_in)[0]
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, mlp(x), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(y.square().sum(), mlp.W_in)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["top_k", "top_p", "threshold"])
def test_the_most_pathways_of_a_token_are_told_where_known(monkeypatch, rule):
    told = []
    run = routed_mlp.routed_mlp
    monkeypatch.setattr(routed_mlp, "routed_mlp", lambda call, *more: told.append(call.most) or run(call, *more))
    mlp = routed(n_shared=1)
    mlp.router.config = replace(mlp.router.config, rule=rule)  # at run time, as `eval.py frontier` does
    with record_routes(mlp) as routes:
        for k in (2, 3):
            mlp.k = k
            mlp(torch.randn(9, D))
            assert told[-1] == (k if rule == "top_k" else None)
            if rule == "top_k":
                assert routes["L3.mlp"].chosen.sum(1).max() == k


def test_records_while_compiled():
    mlp, x = routed(), torch.randn(9, D)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    with record_routes(mlp) as eager:
        mlp(x)
    with record_routes(mlp) as routes:
        compiled(x)
    torch.testing.assert_close(routes["L3.mlp"].scores, eager["L3.mlp"].scores)
    assert torch.equal(routes["L3.mlp"].chosen, eager["L3.mlp"].chosen)
