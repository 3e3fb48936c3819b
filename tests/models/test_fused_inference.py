"""Without gradients a routed MLP is one compiled call, prepared once, that gives what its parts give."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils import parametrize

from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig


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
                patch.setattr(RoutedMLP, "_fuses", lambda self, x: None)
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
    copy.deepcopy(mlp)(x)
    assert pickle.loads(pickle.dumps(mlp))._prepared is None


def test_not_in_one_call_where_something_else_is_wanted():
    x = torch.randn(3, 12)
    with torch.no_grad():
        for change in (dict(), dict(rule="top_p"), dict(n_shared=1), dict(gate="graded"), dict(router="static")):
            config = RoutingConfig(n_pathways=5, k=2, **change)
            mlp = RoutedMLP(12, 33, config, activation="gelu", layer_index=0)
            assert mlp._fuses(x) == ("rows" if change == {} else None), change
        mlp = RoutedMLP(12, 33, RoutingConfig(n_pathways=5, k=2), activation="gelu", layer_index=0, dropout=0.5)
        assert not mlp.train()._fuses(x) and mlp.eval()._fuses(x)
    assert not RoutedMLP(12, 33, RoutingConfig(n_pathways=5, k=2), activation="gelu", layer_index=0)._fuses(x)


def test_not_in_one_call_with_weights_that_are_computed():
    torch.manual_seed(0)
    mlp = RoutedMLP(12, 33, RoutingConfig(n_pathways=5, k=2), activation="gelu", layer_index=0)
    doubled = copy.deepcopy(mlp)
    parametrize.register_parametrization(doubled, "W_out", Doubled())
    adapted = copy.deepcopy(mlp)
    parametrize.register_parametrization(adapted.router.out, "bias", Doubled())
    x = torch.randn(3, 12)
    with torch.no_grad():
        assert mlp._fuses(x) and not doubled._fuses(x) and not adapted._fuses(x)
        torch.testing.assert_close(doubled(x) - mlp.b_out, 2 * (mlp(x) - mlp.b_out))


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight
