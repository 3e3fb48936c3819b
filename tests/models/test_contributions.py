"""What skipping a pathway loses is measured as by taking it away, in every architecture, with and without means."""

import pytest
import torch

from slms.models.contributions import contribution_norms
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("means", [False, True])
def test_norms_are_those_of_the_outputs_by_hand(gated, means):
    torch.manual_seed(0)
    config = RoutingConfig(n_pathways=5, k=2, mean_compensation=means, router="linear")
    mlp = RoutedMLP(6, 37, config, activation="silu" if gated else "gelu_new", layer_index=0, gated=gated)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter)
    mlp.permutation.copy_(torch.randperm(37))
    if means:
        mlp.mean_out.normal_()
    x = torch.randn(20, 6)
    up = x @ mlp.W_in.T + mlp.b_in
    h = torch.nn.functional.silu(x @ mlp.W_gate.T + mlp.b_gate) * up if gated else gelu(up)
    for p, (a, b) in enumerate(zip(mlp.offsets, mlp.offsets[1:], strict=False)):
        lost = h[:, a:b] @ mlp.W_out[a:b] - (mlp.mean_out[p] if means else 0)
        assert torch.allclose(contribution_norms(mlp)(x)[:, p], lost.norm(dim=1), rtol=1e-4, atol=1e-4)


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")
