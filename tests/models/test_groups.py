"""One router for several layers: from the definition, in training, decoding and measurement, and what is refused."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

import slms
from slms.measure.speed import all_mlps
from slms.models.activations import mlp_inputs
from slms.models.base import random_twin
from slms.models.decode_step import speed_up
from slms.models.flops import flops_per_token, mlp_flops
from slms.models.groups import groups_of
from slms.models.routed import choose_by, record_routes, routed_modules, set_k
from slms.models.transformers_internals import compute_again
from slms.models.weights import neurons, read_mlp
from slms.routing import RULES, Follower, PathwayRouter, RoutingConfig
from tests.models.conftest import D_FF
from tests.models.decoding import decode, gradients_twice

P, K = 7, 3
CONFIG = RoutingConfig(n_pathways=P, k=K, every_n_layers=1, router="linear", gate="ramp", router_layers=2)
PLACES = ("L0.mlp", "L1.mlp", "L2.mlp")


def grouped(family: str, tiny, tokens, **fields):
    return slms.route(tiny(family), replace(CONFIG, **fields), tokens(4, 16)).eval()


def test_from_the_definition(tiny, tokens, family):
    """A model in which each MLP is a loop over tokens and pathways; layer 1 takes the choice and gates of layer 0."""
    model = grouped(family, tiny, tokens)
    modules, chosen = routed_modules(model), {}
    with torch.no_grad():
        for router in (modules["L0.mlp"].router, modules["L2.mlp"].router):
            router.ramp.fill_(0.7)  # gates that differ by token

    def slow(place, mlp, router):
        def forward(x):
            flat = x.flatten(0, -2)
            if router is not None:
                scores = flat @ router.out.weight.T + router.out.bias
                best = scores.topk(K).indices.tolist()
                chosen[place] = [{p: 1 + 0.7 * (row[p].sigmoid() - 1) for p in ps} for row, ps in zip(scores, best)]  # noqa: B905
            of = chosen["L0.mlp" if place == "L1.mlp" else place]
            dense = read_mlp(mlp)
            pathway, y = mlp.pathway_of_neuron(), torch.zeros_like(flat)
            for t, token in enumerate(flat):
                h = neurons(dense, token[None])[0]
                for p, gate in of[t].items():
                    mine = pathway == p
                    y[t] += gate * (h[mine] @ dense.W_out[mine])
            return (y if dense.b_out is None else y + dense.b_out).view_as(x)

        return forward

    ids = tokens(2, 9, seed=3)
    with torch.no_grad():
        found = model(ids).logits
        for place, mlp in modules.items():
            mlp.forward = slow(place, mlp, None if place == "L1.mlp" else mlp.router)
        expected = model(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)
    assert isinstance(modules["L1.mlp"].router, Follower) and not list(modules["L1.mlp"].router.parameters())
    assert [type(modules[place].router) for place in ("L0.mlp", "L2.mlp")] == [PathwayRouter] * 2


@pytest.mark.parametrize("layers", [2, 3])
def test_with_every_pathway_it_is_the_dense_model(tiny, tokens, family, layers):
    model, ids = tiny(family), tokens(2, 9, seed=3)
    routed = slms.route(model, replace(CONFIG, k=P, gate="unit", router_layers=layers), tokens(4, 16))
    expected = model(ids).logits
    torch.testing.assert_close(routed(ids).logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        *({"rule": rule} for rule in RULES if rule != "relu"),
        {"rule": "relu", "gate": "relu", "router_bias": True},
        *({"gate": gate} for gate in ("unit", "softmax", "sigmoid", "graded", "blend")),
        {"n_shared": 1, "mean_compensation": True, "router": "mlp"},
        {"pool": 4, "pool_block": 4},
        {"refit": True, "importance": "loss"},
        *({"partition": kind, "n_shared": 1} for kind in ("learned", "kmeans", "random", "contiguous")),
    ],
    ids=str,
)
def test_every_rule_and_gate_gives_followers_the_leaders_routes(tiny, tokens, fields):
    model = grouped("llama", tiny, tokens, **fields)
    with torch.no_grad(), record_routes(model) as routes:
        model(tokens(2, 9, seed=3))
    for part in ("chosen", "gates", "scores", "probs"):
        assert torch.equal(getattr(routes["L1.mlp"], part), getattr(routes["L0.mlp"], part))
        assert not torch.equal(getattr(routes["L2.mlp"], part), getattr(routes["L0.mlp"], part))


@pytest.mark.parametrize("fields", [{}, {"pool": 4, "pool_block": 4, "gate": "unit"}], ids=["alone", "pools"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_changes_nothing_batched_and_padded(tiny, tokens, family, beams, fields):
    model = grouped(family, tiny, tokens, **fields)
    ids = tokens(3, 11, seed=5)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[2, :7] = 0, 0
    options = {"max_new_tokens": 14, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
    made = [model.generate(ids, attention_mask=mask, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(*made)
    alone = model.generate(ids[:1, 4:], attention_mask=mask[:1, 4:], **options)
    assert torch.equal(made[0][:1, 4:], alone)


def test_followers_teach_the_leaders_router(tiny, tokens):
    """Against differences of the loss, with every pathway chosen, so that no choice flips."""
    model = grouped("llama", tiny, tokens, k=P, gate="sigmoid", backend="reference").double()
    modules, ids = routed_modules(model), tokens(2, 9, seed=3)
    router = modules["L0.mlp"].router
    loss = lambda: model(ids).logits.square().mean()  # noqa: E731
    (whole,) = torch.autograd.grad(loss(), router.out.bias)
    steps = []
    with torch.no_grad():
        for p in range(P):
            values = []
            for step in (3e-3, -3e-3):
                router.out.bias[p] += step
                values.append(loss())
                router.out.bias[p] -= step
            steps.append((values[0] - values[1]) / 6e-3)
    torch.testing.assert_close(whole, torch.stack(steps), rtol=1e-2, atol=1e-3 * whole.abs().max().item())
    own = Follower.route
    with pytest.MonkeyPatch.context() as patch:
        detached = lambda self, *a: own(self, *a)._replace(gates=own(self, *a).gates.detach())  # noqa: E731
        patch.setattr(Follower, "route", detached)
        (without,) = torch.autograd.grad(loss(), router.out.bias)
    assert (whole - without).abs().max() > 0.05 * whole.abs().max()


@pytest.mark.parametrize("layers", [2, 3])
def test_gradients_pass_through_recomputed_layers(tiny, tokens, layers):
    model = grouped("llama", tiny, tokens, router_layers=layers)
    ids = tokens(2, 20, seed=3)
    gradients = gradients_twice(model, ids)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert copy.deepcopy(model)(ids).logits.isfinite().all()  # what is kept has no graph
    for group in groups_of(model):
        assert group.decision.routes.gates.is_leaf
    with torch.no_grad():
        model(ids)
    assert all(group.decision is None for group in groups_of(model))


def test_reentrant_recomputation_is_refused(tiny, tokens):
    model = grouped("llama", tiny, tokens).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    x = model.get_input_embeddings()(tokens(2, 8)).requires_grad_()
    with pytest.raises(ValueError, match=r"L1.mlp executes what L0.mlp chose, .* with use_reentrant=False"):
        model(inputs_embeds=x).logits.sum().backward()


def test_two_passes_before_backward_are_refused_only_if_layers_are_computed_again(tiny, tokens):
    model = grouped("llama", tiny, tokens).train()
    passes = lambda: [model(tokens(2, 8, seed=i)).logits.square().mean() for i in (1, 2)]  # noqa: E731
    sum(passes()).backward()
    compute_again(model)
    with pytest.raises(
        ValueError, match=r"L1.mlp is computed again after another forward pass, .* call backward before"
    ):
        sum(passes()).backward()


def test_a_saved_model_is_the_same_and_a_follower_has_no_router(tiny, tokens, family, tmp_path):
    model, ids = grouped(family, tiny, tokens), tokens(2, 9, seed=3)
    slms.save_model(model, None, tmp_path / "model")
    opened = slms.load_model(tmp_path / "model").model
    for same in (opened, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(ids).logits, model(ids).logits)
        leader, follower = (routed_modules(same)[place].router for place in PLACES[:2])
        assert follower.group is leader.group and leader.group.router is leader
        assert not {id(p) for p in same.parameters()} & {id(p) for p in model.parameters()}
        with torch.no_grad():
            leader.out.weight.mul_(-1.0)
        assert not torch.equal(same(ids).logits, model(ids).logits)
    assert {n.split(".router.")[0][-5] for n in model.state_dict() if ".router." in n} <= {"0", "2"}
    assert routed_modules(opened)["L0.mlp"].config == replace(CONFIG, seed=None)


def test_print_flops_and_k(tiny, tokens):
    model, alone = (grouped("llama", tiny, tokens, router_layers=n) for n in (2, 1))
    lines = repr(model).splitlines()
    assert "  L1.mlp: 37 neurons in 7 pathways, those that L0.mlp chose, density 0.43" in lines
    flops = {place: mlp_flops(module).run for place, module in routed_modules(model).items()}
    router = 2 * P * 24
    assert flops["L0.mlp"] - flops["L1.mlp"] == router and flops["L0.mlp"] == flops["L2.mlp"]
    assert flops_per_token(alone, 8).mlp_routed - flops_per_token(model, 8).mlp_routed == router
    set_k(model, 2)
    with torch.no_grad(), record_routes(model) as routes:
        model(tokens(2, 9))
    assert all((found.chosen.sum(1) == 2).all() for found in routes.values())
    routed_modules(model)["L1.mlp"].k = 4
    with pytest.raises(ValueError, match=r"k of L1.mlp is 4; it must be 2, as at L0.mlp, whose choice it shares"):
        model(tokens(2, 9))


def test_a_follower_does_not_run_alone(tiny, tokens):
    model = grouped("llama", tiny, tokens)
    leader, follower = (routed_modules(model)[place] for place in PLACES[:2])
    x = torch.randn(1, 4, 24)
    with torch.no_grad():
        model(tokens(1, 4))
        assert leader(x).isfinite().all()
        with pytest.raises(
            ValueError, match=r"L1.mlp executes what L0.mlp chose for the same tokens; it cannot run alone"
        ):
            follower(x)
        assert len(all_mlps(model, tokens(1, 6), last=True)()) == 3


def test_other_choices_at_a_place_change_that_place(tiny, tokens):
    model, ids = grouped("llama", tiny, tokens), tokens(2, 9, seed=3)
    with torch.no_grad(), record_routes(model) as own:
        model(ids)
    fixed = torch.arange(P) < K
    for place in PLACES[:2]:
        seen = {}

        def choose(x, routes, seen=seen):
            seen["scores"] = routes.scores
            return fixed.expand(len(x), P)

        with torch.no_grad(), choose_by(model, {place: choose}), record_routes(model) as routes:
            model(ids)
        assert torch.equal(seen["scores"], own["L0.mlp"].scores)
        for other in PLACES[:2]:
            expected = fixed.expand(18, P) if other == place else own["L0.mlp"].chosen
            assert torch.equal(routes[other].chosen, expected)
        gates = 1.0 + 0.0 * own["L0.mlp"].scores
        assert torch.equal(routes[place].gates, torch.where(fixed, gates, 0.0))


def test_one_call_decodes_and_calls_the_grouped_mlps(tiny, tokens):
    model = grouped("llama", tiny, tokens)
    fast, ids = speed_up(copy.deepcopy(model)), tokens(1, 12, seed=3)
    with torch.inference_mode():
        torch.testing.assert_close(decode(fast, ids), decode(model, ids), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(decode(model, ids), model(ids).logits[:, 4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(tiny, tokens, backend):
    model, ids = grouped("llama", tiny, tokens), tokens(2, 9, seed=3)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(ids).logits, model(ids).logits)


def test_a_random_twin_and_inputs_are_read(tiny, tokens):
    model = grouped("llama", tiny, tokens, rule="controlled")
    twin = random_twin(model)
    with torch.no_grad(), record_routes(twin) as routes, mlp_inputs(twin) as inputs:
        twin(tokens(2, 9))
    assert len(inputs) == 3 and torch.equal(routes["L0.mlp"].chosen, routes["L1.mlp"].chosen)


def test_without_calibration(tiny, tokens):
    routed = slms.route(tiny("gpt2"), CONFIG)
    assert routed(tokens(2, 5)).logits.isfinite().all() and isinstance(
        routed_modules(routed)["L1.mlp"].router, Follower
    )


def test_single_neurons(tiny, tokens):
    model = grouped("llama", tiny, tokens, n_pathways=D_FF, k=9)
    assert model(tokens(2, 5)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router_layers": 0}, "`routing.router_layers` is 0; it must be at least 1"),
        ({"router": "gate"}, "`routing.router_layers` is 2; with `routing.router` gate it must be 1"),
        ({"target": "attention"}, "`routing.router_layers` is 2; .* it must be left at 1"),
        ({"target": "both"}, "`routing.router_layers` is 2; with `routing.target` both it must be 1"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ValueError, match=message) as raised:
        RoutingConfig(**{"n_pathways": 16, "k": 4, "router_layers": 2} | fields)
    assert "\n" not in str(raised.value)


def test_the_configuration_is_read_as_it_was_written():
    assert RoutingConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert RoutingConfig(layers=[5, 1, 3], router_layers=2).leaders(6) == {1: 1, 3: 1, 5: 5}
