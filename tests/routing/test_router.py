import pytest
import torch

from slms.routing import PathwayRouter, RoutingConfig

D = 12


def router(**fields) -> PathwayRouter:
    torch.manual_seed(0)
    return PathwayRouter(D, RoutingConfig(**{"n_pathways": 8, "k": 3, "router_hidden": 20, **fields}))


def test_mlp_scores_from_the_definition():
    r, x = router(), torch.randn(5, D)
    w1, b1, w2, b2 = r.hidden.weight, r.hidden.bias, r.out.weight, r.out.bias
    expected = torch.stack([w2 @ torch.clamp(w1 @ row + b1, min=0) + b2 for row in x])
    torch.testing.assert_close(r(x), expected)
    assert r.hidden.weight.shape == (20, D)


def test_linear_scores_from_the_definition():
    r, x = router(router="linear"), torch.randn(5, D)
    torch.testing.assert_close(r(x), x @ r.out.weight.T + r.out.bias)
    assert sum(p.numel() for p in r.parameters()) == 8 * D + 8


def test_scores_without_bias_from_the_definition():
    x = torch.randn(5, D)
    for kind in ("linear", "mlp"):
        r = router(router=kind, router_bias=False, gate="graded")
        inputs = x if r.hidden is None else r.hidden(x).relu()
        assert r.out.bias is r.grade.bias is None
        torch.testing.assert_close(r(x), inputs @ r.out.weight.T)


@pytest.mark.parametrize("gate", ["unit", "graded"])
def test_scores_are_fp32_under_autocast_and_bf16_parameters(gate):
    r, x = router(gate=gate), torch.randn(5, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(r(x), r(x.float()), rtol=0, atol=0)
        assert r(x).dtype == torch.float32
        inside = r(x)
    torch.testing.assert_close(inside, r(x), rtol=0, atol=0)
    routes = r.bfloat16().route(x.bfloat16())
    assert routes.scores.dtype == routes.gates.dtype == torch.float32


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("gate", ["graded", "blend", "ramp"])
def test_trainable_gates_start_as_unit_gates(kind, gate):
    x = torch.randn(40, D)
    unit, other = router(router=kind), router(router=kind, gate=gate)
    other.load_state_dict(unit.state_dict(), strict=False)
    for k in (3, 8):
        a, b = unit.route(x, k), other.route(x, k)
        assert torch.equal(a.chosen, b.chosen) and torch.equal(a.gates, b.gates)


@pytest.mark.parametrize("gate", ["unit", "softmax", "sigmoid", "graded", "blend", "ramp"])
def test_every_router_parameter_learns_from_the_first_step(gate):
    r, x = router(gate=gate), torch.randn(64, D)
    (r.route(x).gates * torch.randn(64, 8)).sum().backward()
    for name, parameter in r.named_parameters():
        if gate == "graded" and not name.startswith("grade"):
            continue  # the head that starts at 0 hides the layers below it for exactly one step
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_graded_gradient_reaches_the_hidden_layer_at_the_second_step():
    r, x = router(gate="graded"), torch.randn(64, D)
    optimizer = torch.optim.SGD(r.parameters(), lr=0.1)
    upstream = torch.randn(64, 8)
    for _ in range(2):
        optimizer.zero_grad()
        (r.route(x).gates * upstream).sum().backward()
        optimizer.step()
    assert r.hidden.weight.grad.abs().sum() > 0


def test_a_rising_grade_raises_the_score_too():
    r, x = router(gate="graded"), torch.randn(64, D)
    before = r(x)
    with torch.no_grad():
        r.grade.bias[5] = 2.0
    torch.testing.assert_close(
        r(x) - before, torch.tensor([0, 0, 0, 0, 0, 2.0, 0, 0]).expand(64, -1), atol=1e-5, rtol=0
    )
    chosen = r.route(x)
    torch.testing.assert_close(
        chosen.gates[chosen.chosen[:, 5], 5].unique(), torch.tensor([2.0]).sigmoid() * 2, check_dtype=False
    )


def test_norm_scale_standardises_and_keeps_the_order():
    r = router()
    norms = torch.rand(500, 8) * torch.arange(1, 9) + 3
    z = r.set_norm_scale(norms)
    assert abs(float(z.mean())) < 1e-4 and abs(float(z.std()) - 1) < 1e-4
    torch.testing.assert_close(r.norm_shift + r.norm_scale * z, norms)
    assert torch.equal(z.argsort(-1), norms.argsort(-1))


def test_threshold_compares_predicted_norms_not_standardised_scores():
    r = router(router="linear", rule="threshold", tau=0.5, n_pathways=3, k=1)
    norms = torch.tensor([[4.0, 2.1, 1.9]])
    z = r.set_norm_scale(norms)
    with torch.no_grad():
        r.out.weight.zero_()
        r.out.bias.copy_(z[0])
    assert r.route(torch.randn(1, D)).chosen.tolist() == [[True, True, False]]


def test_selection_bias_is_saved_and_used_for_the_choice():
    r = router()
    r.selection_bias[6] = 100.0
    assert "selection_bias" in r.state_dict() and r.route(torch.randn(9, D)).chosen[:, 6].all()
