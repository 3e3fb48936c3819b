"""Heads that run for every token beside those that it chooses."""

import pytest
import torch

from slms.models.base import random_twin
from slms.models.convert import route
from slms.models.io import load_model, save_model
from slms.models.routed import routed_modules
from slms.models.routed_heads import RoutedHeads, head_shape
from slms.routing import RoutingConfig
from tests.models.heads_by_definition import by_definition, seen


@pytest.mark.parametrize(("name", "gate"), [("gpt_neo", "unit"), ("gpt2", "ramp"), ("gpt_neox", "softmax")])
def test_shared_heads_run_for_every_token_and_are_saved(tiny, tokens, name, gate, tmp_path):
    """They are those that write most, by plain norms also where the router follows the loss."""
    fields = {"target": "attention", "every_n_layers": 1, "mean_compensation": True, "layers": [1]}
    ids, text = tokens(4, 16), tokens(1, 12, seed=1)
    config = RoutingConfig(**fields, k_heads=3, n_shared_heads=2, router="linear", importance="loss", gate=gate)
    routed = route(tiny(name), config, ids)
    heads = routed_modules(routed, RoutedHeads)["L1.attn"]
    static = route(tiny(name), RoutingConfig(**fields, k_heads=2, router="static"), ids)
    most = routed_modules(static, RoutedHeads)["L1.attn"].router.contribution.topk(2).indices
    x, y, routes = seen(routed, 1, text)
    assert routes.chosen[:, most].all() and (routes.chosen.sum(1) == 3).all()
    others = torch.ones(4).index_fill(0, most, 0).nonzero()[:, 0]
    assert torch.equal(routes.chosen[:, others].int().argmax(1), routes.scores[:, others].argmax(1))
    with torch.no_grad():
        torch.testing.assert_close(
            y, by_definition(name, routed.config, heads, x, routes.gates, routes.chosen), atol=2e-5, rtol=2e-5
        )
    assert "the best 3 chosen by its linear router, 2 of them for every token" in heads.summary()
    assert torch.equal(heads.competing, others) and heads.n_always == 2
    with pytest.raises(ValueError, match="k is 2; it must be from 3"):
        heads.k = 2
    save_model(routed, None, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m").model(text).logits, routed(text).logits)
    _, _, routes = seen(random_twin(routed), 1, text)  # a null model, whose heads nobody calibrated
    assert (routes.chosen.sum(1) == 3).all() and routes.chosen[:, :2].all()


def test_with_every_head_shared_heads_change_nothing(tiny, tokens, family):
    model, ids = tiny(family), tokens(2, 14)
    each = head_shape(model.config).h // head_shape(model.config).groups
    config = RoutingConfig(target="attention", k_heads=each, n_shared_heads=each - 1, router="linear", every_n_layers=1)
    routed = route(model, config, tokens(4, 16))
    with torch.no_grad():
        torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
