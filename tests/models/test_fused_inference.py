"""Without gradients a routed MLP is one compiled call, prepared once, that gives what its parts give."""

import copy
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.utils import parametrize, prune

from slms.models.fused_mlp import fused_backend, fused_router
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig

X = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))


def make(**fields) -> RoutedMLP:
    torch.manual_seed(0)
    config = RoutingConfig(**{"n_pathways": 5, "k": 2, "mean_compensation": True} | fields)
    mlp = RoutedMLP(12, 33, config, activation="gelu", layer_index=0).eval()
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mlp


def fuses(mlp: RoutedMLP, x: torch.Tensor) -> bool:
    return fused_backend(mlp, x) is not None and fused_router(mlp, x.dtype) is not None


def in_parts(mlp: RoutedMLP, x: torch.Tensor) -> torch.Tensor:
    """What it gives while somebody watches, so not in one call."""
    before, mlp.recorder = mlp.recorder, lambda routes: None
    try:
        return mlp(x)
    finally:
        mlp.recorder = before


@pytest.mark.parametrize("gate", ["unit", "softmax", "sigmoid", "ramp", "blend"])
@pytest.mark.parametrize("router", ["mlp", "linear"])
def test_inference_in_one_compiled_call(monkeypatch, gate, router):
    torch.manual_seed(0)
    config = RoutingConfig(
        n_pathways=5, k=2, gate=gate, router=router, router_hidden=7, mean_compensation=router == "mlp"
    )
    mlp = RoutedMLP(12, 33, config, activation="gelu", layer_index=0, gated=True).eval()
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mlp.router.selection_bias.normal_()
    if mlp.mean_out is not None:
        mlp.mean_out.normal_()
    if mlp.router.ramp is not None:
        mlp.router.ramp.fill_(0.3)
    x = torch.randn(3, 4, 12)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            fused = mlp(x)
            with monkeypatch.context() as patch:
                patch.setattr("slms.models.routed_mlp.fused_backend", lambda mlp, x: None)
                return fused, mlp(x)

    torch.testing.assert_close(*both(), rtol=1e-4, atol=1e-5)
    prepared = mlp._prepared
    assert prepared is not None
    with torch.no_grad():
        mlp.W_in.mul_(2)  # in place: nothing to prepare
    torch.testing.assert_close(*both(), rtol=1e-4, atol=1e-5)
    assert mlp._prepared is prepared
    moves = [
        lambda: setattr(mlp, "W_out", torch.nn.Parameter(torch.randn(33, 12))),
        lambda: setattr(mlp.router.out, "bias", torch.nn.Parameter(torch.randn(5))),
        lambda: mlp.router.register_buffer("selection_bias", torch.randn(5)),
        lambda: setattr(mlp, "k", 3),
    ]
    for move in moves:
        before = mlp._prepared
        move()
        torch.testing.assert_close(*both(), rtol=1e-4, atol=1e-5)
        assert mlp._prepared is not before


@torch.no_grad()
@pytest.mark.parametrize("gate", ["unit", "softmax", "sigmoid"])
def test_in_one_call_with_shared_pathways(gate):
    mlp = make(n_shared=2, k=4, gate=gate)
    assert fuses(mlp, X)
    torch.testing.assert_close(mlp(X), in_parts(mlp, X))
    torch.testing.assert_close(mlp(X[:1]), in_parts(mlp, X[:1]))


@torch.no_grad()
def test_in_one_call_without_a_bias_of_the_router():
    mlp = make(router="linear", router_bias=False, gate="softmax")
    assert fuses(mlp, X)
    torch.testing.assert_close(mlp(X), in_parts(mlp, X))


def test_not_in_one_call_where_something_else_is_wanted():
    x = torch.randn(3, 12)
    with torch.no_grad():
        for change in (dict(), dict(n_shared=1), dict(rule="top_p"), dict(gate="graded"), dict(pool=3)):
            config = RoutingConfig(n_pathways=5, k=2, **change)
            mlp = RoutedMLP(12, 33, config, activation="gelu", layer_index=0)
            assert fused_backend(mlp, x) == ("rows" if change in ({}, {"n_shared": 1}) else None), change
        mlp = RoutedMLP(12, 33, RoutingConfig(n_pathways=5, k=2), activation="gelu", layer_index=0, dropout=0.5)
        assert not fused_backend(mlp.train(), x) and fused_backend(mlp.eval(), x)
    mlp = RoutedMLP(12, 33, RoutingConfig(n_pathways=5, k=2), activation="gelu", layer_index=0)
    assert fused_backend(mlp, x) is None  # gradients are needed


def test_not_in_one_call_with_weights_that_are_computed():
    torch.manual_seed(0)
    mlp = RoutedMLP(12, 33, RoutingConfig(n_pathways=5, k=2), activation="gelu", layer_index=0)
    doubled = copy.deepcopy(mlp)
    parametrize.register_parametrization(doubled, "W_out", Doubled())
    adapted = copy.deepcopy(mlp)
    parametrize.register_parametrization(adapted.router.out, "bias", Doubled())
    x = torch.randn(3, 12)
    with torch.no_grad():
        assert fuses(mlp, x) and not fuses(doubled, x) and not fuses(adapted, x)
        torch.testing.assert_close(doubled(x) - mlp.b_out, 2 * (mlp(x) - mlp.b_out))


@torch.no_grad()
@pytest.mark.parametrize("name", ["W_in", "b_in", "W_out"])
def test_not_in_one_call_with_weights_that_a_hook_computes(name):
    """As pruning does: what is learned has another name, and is masked anew at each forward."""
    mlp = make()
    mlp(X)
    prune.l1_unstructured(mlp, name, 0.5)
    mlp(X)
    getattr(mlp, f"{name}_orig").mul_(2)
    torch.testing.assert_close(mlp(X), in_parts(mlp, X))
    assert not fuses(mlp, X)


@torch.no_grad()
def test_not_in_one_call_with_a_router_that_a_hook_computes():
    mlp = make(router="linear")
    prune.l1_unstructured(mlp.router.out, "weight", 0.5)
    mlp(X)
    mlp.router.out.weight_orig.neg_()
    mlp.router.out(X)  # runs the hook
    torch.testing.assert_close(mlp(X), in_parts(mlp, X))
    assert not fuses(mlp, X)


@torch.no_grad()
@pytest.mark.parametrize("part", ["router", "router.hidden", "router.out"])
def test_not_in_one_call_with_a_router_of_another_type(part):
    mlp, x = make().bfloat16(), X.bfloat16()
    assert fuses(mlp, x)
    mlp.get_submodule(part).float()
    assert torch.equal(mlp(x), in_parts(mlp, x))
    assert not fuses(mlp, x)


@torch.no_grad()
def test_another_type_and_back():
    mlp = make()
    first = mlp(X)
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float32):
        x = X.to(dtype)
        torch.testing.assert_close(mlp.to(dtype)(x), in_parts(mlp, x), rtol=0.02, atol=0.02)
    torch.testing.assert_close(mlp(X), in_parts(mlp, X))
    assert fuses(mlp, X) and not torch.equal(mlp(X), first)  # its weights were rounded


def test_a_step_of_the_optimizer_counts():
    mlp = make(gate="sigmoid")
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
    with torch.no_grad():
        before = mlp(X)
    prepared = mlp._prepared
    for parameter in mlp.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        after = mlp(X)
        torch.testing.assert_close(after, in_parts(mlp, X))
    assert mlp._prepared is prepared and (after - before).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda mlp: pickle.loads(pickle.dumps(mlp))])
def test_a_copy_has_its_own_weights(copied):
    mlp = make()
    before = mlp(X)
    other = copied(mlp)
    assert other._prepared is None
    mlp.W_in.zero_()
    assert torch.equal(other(X), before)
    other.W_in.zero_()
    assert torch.equal(other(X), mlp(X)) and not torch.equal(other(X), before)


def test_two_threads():
    mlp = make()
    inputs = [torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) for n in (1, 40)]
    barrier = threading.Barrier(2)

    @torch.no_grad()  # gradients are switched by thread
    def outputs(x: torch.Tensor) -> torch.Tensor:
        barrier.wait()
        return torch.stack([mlp(x) for _ in range(1000)])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that one interrupts the other within a call
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(outputs, inputs))
    finally:
        sys.setswitchinterval(interval)
    with torch.no_grad():
        for x, y in zip(inputs, found, strict=True):
            torch.testing.assert_close(y, in_parts(mlp, x).expand_as(y), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_not_in_one_call_with_a_tensor_of_another_class():
    mlp = make()
    mlp.W_out = torch.nn.Parameter(mlp.W_out.detach().as_subclass(Sharded), requires_grad=False)
    assert not fuses(mlp, X)
    torch.testing.assert_close(mlp(X), in_parts(mlp, X))


class Sharded(torch.Tensor):
    def data_ptr(self):
        raise RuntimeError("its numbers lie elsewhere")


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight
