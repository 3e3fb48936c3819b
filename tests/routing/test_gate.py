"""The selector `gate` against its definition, in the MLP of every gated family and in models."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import slms
from slms.kernels import gate_mlp_reference
from slms.kernels.activations import ACTIVATIONS
from slms.models.anatomy import find_mlps
from slms.models.convert import route
from slms.models.flops import mlp_flops
from slms.models.routed import choose_by, record_routes, routed_modules
from slms.models.weights import read_mlp
from slms.routing import GateSelector, RoutingConfig
from slms.routing.gate import MASSIVE
from slms.routing.option_types import typed
from tests.models.conftest import D_FF, FAMILIES, tiny, tokens  # noqa: F401  fixtures

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
ALONE = {"router": "gate", "n_pathways": D_FF, "every_n_layers": 1, "refit": False}


def expected(weights, x, scale, units, k, n_shared):
    """The output of one token x [d] by the definition, one neuron at a time; units: lists of neurons."""
    act = ACTIVATIONS[weights.activation]
    b_gate = 0 if weights.b_gate is None else weights.b_gate
    b_in = 0 if weights.b_in is None else weights.b_in
    gate = act(weights.W_gate @ x + b_gate)
    score = [math.sqrt(sum((abs(gate[i]) * scale[i]).item() ** 2 for i in unit)) for unit in units]
    best = sorted(range(n_shared, len(units)), key=lambda u: -score[u])[: k - n_shared]
    y = torch.zeros(len(x)) if weights.b_out is None else weights.b_out.clone()
    for u in [*range(n_shared), *best]:
        for i in units[u]:
            y += gate[i] * ((weights.W_in @ x + b_in)[i]) * weights.W_out[i]
    return y


@torch.no_grad()
@pytest.mark.parametrize("family", GATED)
@pytest.mark.parametrize(("n", "k", "shared"), [(D_FF, D_FF // 2, 0), (6, 3, 1)], ids=["neurons", "pathways"])
def test_the_routed_mlp_is_the_definition(tiny, tokens, family, n, k, shared):  # noqa: F811
    model = tiny(family)
    config = RoutingConfig(router="gate", n_pathways=n, k=k, n_shared=shared, every_n_layers=1, refit=False)
    routed = route(model, config, tokens(4, 16))
    mlp, weights = find_mlps(routed)[1], read_mlp(find_mlps(model)[1])
    x = torch.randn(5, weights.W_in.shape[1], generator=torch.Generator().manual_seed(1))
    scale = torch.empty(D_FF)
    scale[mlp.permutation] = mlp.router.scale
    units = [mlp.permutation[a:b].tolist() for a, b in zip(mlp.offsets, mlp.offsets[1:], strict=False)]
    mlp.router.whole_above.fill_(math.inf)
    want = torch.stack([expected(weights, row, scale, units, k, shared) for row in x])
    torch.testing.assert_close(mlp(x), want, atol=1e-4, rtol=1e-4)
    with record_routes(routed) as routes:
        torch.testing.assert_close(mlp(x), want, atol=1e-4, rtol=1e-4)
    found = routes["L1.mlp"]
    assert found.chosen.sum(1).tolist() == [k] * 5 and found.chosen[:, :shared].all()
    assert torch.equal(found.gates, found.chosen.float())
    assert not found.probs[:, :shared].any()
    torch.testing.assert_close(found.probs.sum(1), torch.ones(5))


@torch.no_grad()
@pytest.mark.parametrize("family", GATED)
def test_all_units_are_the_dense_model_and_saving_keeps_the_choice(tiny, tokens, tmp_path, family):  # noqa: F811
    model, ids = tiny(family), tokens(2, 9)
    whole = route(model, RoutingConfig(**ALONE, k=D_FF), tokens(4, 16))
    torch.testing.assert_close(whole(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    half = route(model, RoutingConfig(**ALONE, k=D_FF // 2), tokens(4, 16))
    assert (half(ids).logits - model(ids).logits).abs().max() > 1e-3
    slms.save_model(half, None, tmp_path / "model")
    torch.testing.assert_close(slms.load_model(tmp_path / "model").model(ids).logits, half(ids).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    assert torch.equal(half.generate(ids, **options), half.generate(ids, use_cache=False, **options))


@torch.no_grad()
def test_calibration_measures_the_up_projection_and_finds_massive_tokens():
    selector = GateSelector((0, 1, 2), RoutingConfig(router="gate", n_pathways=2, k=1))
    gate, up = torch.ones(100, 2), torch.tensor([[3.0, 1.0], [1.0, 1.0]]).repeat(50, 1)
    assert selector.calibrate(gate, up, torch.tensor([2.0, 1.0])) == 0
    torch.testing.assert_close(selector.scale, torch.tensor([2 * 5**0.5, 1.0]))
    assert selector.route(gate, 1, gate).chosen.sum(1).tolist() == [1] * 100
    gate[7] *= 1.01 * MASSIVE
    assert selector.calibrate(gate, up, torch.tensor([2.0, 1.0])) == 1
    assert selector.route(gate, 1, gate).chosen.sum(1).tolist() == [1] * 7 + [2] + [1] * 92


@torch.no_grad()
def test_a_massive_token_keeps_every_unit_whether_it_is_observed_or_not(tiny, tokens):  # noqa: F811
    model = tiny("llama")
    routed = route(model, RoutingConfig(**ALONE, k=5), tokens(4, 16))
    mlp, dense = find_mlps(routed)[1], find_mlps(model)[1]
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    sizes = mlp.routes(x).scores.norm(dim=1)
    mlp.router.whole_above.fill_((sizes.max() + sizes.sort().values[-2]) / 2)
    largest = int(sizes.argmax())
    plain = mlp(x)
    torch.testing.assert_close(plain[largest], dense(x)[largest], atol=1e-5, rtol=1e-5)
    assert (plain - dense(x)).abs().amax(1).gt(1e-3).sum() == 3
    with record_routes(routed) as routes:
        torch.testing.assert_close(mlp(x), plain, atol=1e-5, rtol=1e-5)
    assert routes["L1.mlp"].chosen.sum(1).tolist() == [D_FF if t == largest else 5 for t in range(4)]


def test_only_what_is_chosen_is_trained_and_the_choice_has_no_gradient(tiny, tokens):  # noqa: F811
    routed, ids = route(tiny("llama"), RoutingConfig(**ALONE, k=5), tokens(4, 16)), tokens(1, 1)
    mlp = find_mlps(routed)[1]
    mlp.router.whole_above.fill_(math.inf)
    routed(ids, labels=None).logits.sum().backward()
    for weight in (mlp.W_in, mlp.W_out, mlp.W_gate):
        assert weight.grad.abs().amax(1).gt(0).sum() == 5
    assert not [name for name, _ in mlp.router.named_parameters()]


@torch.no_grad()
def test_another_choice_replaces_the_gate_s(tiny, tokens):  # noqa: F811
    routed, ids = route(tiny("llama"), RoutingConfig(**ALONE, k=5), tokens(4, 16)), tokens(2, 9)
    every = {place: lambda x, routes: torch.ones_like(routes.chosen) for place in routed_modules(routed)}
    with choose_by(routed, every):
        torch.testing.assert_close(routed(ids).logits, tiny("llama")(ids).logits, atol=1e-5, rtol=1e-5)


def test_without_calibration_neurons_weigh_by_what_they_write(tiny, tokens, caplog):  # noqa: F811
    routed = route(tiny("llama"), RoutingConfig(**ALONE, k=5))
    assert "without calibration tokens" in caplog.text
    for mlp in routed_modules(routed).values():
        torch.testing.assert_close(mlp.router.scale, mlp.W_out.norm(dim=1))
        assert mlp.router.whole_above == math.inf


def test_half_precision_chooses_alike(tiny, tokens):  # noqa: F811
    routed, ids = route(tiny("llama"), RoutingConfig(**ALONE, k=D_FF // 2), tokens(4, 16)), tokens(2, 9)
    with torch.no_grad():
        want, half = routed(ids).logits, copy.deepcopy(routed).bfloat16()
        assert F.cosine_similarity(half(ids).logits.float().flatten(), want.flatten(), 0) > 0.98


def test_the_gate_runs_whole_and_the_rest_where_chosen(tiny, tokens):  # noqa: F811
    mlp = find_mlps(route(tiny("llama"), RoutingConfig(**ALONE, k=D_FF // 2), tokens(4, 16)))[0]
    found, rho = mlp_flops(mlp), (D_FF // 2) / D_FF
    assert found.run == pytest.approx(found.per_neuron * D_FF * (1 + 2 * rho) / 3)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in GATED])
def test_an_mlp_without_a_gate_is_refused(tiny, tokens, family):  # noqa: F811
    with pytest.raises(ValueError, match=r"`routing\.router` is gate; the MLPs have no gate"):
        route(tiny(family), RoutingConfig(**ALONE, k=5), tokens(4, 16))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("gate", "softmax"),
        ("rule", "top_p"),
        ("mean_compensation", True),
        ("router_bias", False),
        ("backend", "numba"),
    ],
)
def test_options_that_would_not_act_are_refused(option, value):
    with pytest.raises(
        ValueError, match=rf"`routing\.{option}` is {typed(value)}; with `routing\.router` gate it must be"
    ):
        RoutingConfig(**ALONE, k=5, **{option: value})


@torch.inference_mode()
def test_the_prepared_call_follows_every_change_and_is_not_copied(tiny, tokens):  # noqa: F811
    config = RoutingConfig(**ALONE, k=5, importance="norm")  # a model made in inference mode has no gradients
    routed = route(tiny("llama"), config, tokens(4, 16)).eval()
    mlp, x = find_mlps(routed)[1], torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(1))

    def check(prepared_again):
        before = mlp._prepared
        plain = gate_mlp_reference(mlp.gate_call(x[0], mlp.router))
        torch.testing.assert_close(mlp(x)[0], plain + mlp.b_out, atol=1e-5, rtol=1e-5)
        assert (mlp._prepared is not before) == prepared_again

    check(True)
    check(False)
    mlp.W_in.mul_(1.5)
    mlp.router.scale.mul_(torch.rand(D_FF))
    mlp.router.whole_above.fill_(0.0)
    check(False)
    mlp.router.whole_above.fill_(math.inf)
    mlp.k = 3
    check(True)
    mlp.W_out = nn.Parameter(torch.randn(D_FF, 24))
    check(True)
    mlp.router.scale = torch.rand(D_FF)
    check(True)
    for copied in (copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert copied._prepared is None
        assert torch.equal(copied(x), mlp(x))
    half = copy.deepcopy(mlp).bfloat16()
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16 and half._prepared is None  # its scale must be copied to float32
    mlp.W_gate = nn.Parameter(mlp.W_gate.t().contiguous().t())
    check(False)
