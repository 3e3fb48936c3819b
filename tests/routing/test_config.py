import doctest
import json

import pytest

from slms.routing import RoutingConfig, config, option_types


def test_round_trip_through_json_keeps_every_field():
    cfg = RoutingConfig(n_pathways=8, k=3, layers=[0, 2], rule="top_p", top_p=0.7, gate="softmax", n_shared=1, seed=5)
    assert RoutingConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_absent_fields_take_their_default_and_unknown_ones_are_named():
    assert RoutingConfig.from_dict({"k": 2}) == RoutingConfig(k=2)
    with pytest.raises(ValueError, match=r"`routing\.pathways` is not a routing option"):
        RoutingConfig.from_dict({"pathways": 4})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 9, "n_pathways": 4}, r"`routing.k` is 9; it must be at most `routing.n_pathways` \(4\)"),
        ({"k": 0}, "`routing.k` is 0"),
        ({"n_pathways": 0}, "`routing.n_pathways` is 0"),
        ({"every_n_layers": 0}, "`routing.every_n_layers` is 0"),
        ({"router_hidden": 0}, "`routing.router_hidden` is 0"),
        ({"n_shared": 4}, r"`routing.n_shared` is 4; it must be at least 0 and below `routing.k` \(4\)"),
        ({"n_shared": -1}, "`routing.n_shared` is -1"),
        ({"top_p": 0.0}, "`routing.top_p` is 0.0"),
        ({"tau": 1.5}, "`routing.tau` is 1.5"),
        ({"seed": -1}, "`routing.seed` is -1"),
        ({"first_layer": -1}, "`routing.first_layer` is -1"),
        ({"layers": []}, r"`routing.layers` is \[\]"),
        ({"layers": [1, 1]}, r"`routing.layers` is \[1, 1\]"),
        ({"layers": [-1]}, r"`routing.layers` is \[-1\]"),
        ({"gate": "hard"}, "`routing.gate` is 'hard'; it must be one of unit, softmax, sigmoid"),
        ({"partition": "metis"}, "`routing.partition` is 'metis'"),
        ({"k": True}, "`routing.k` is true; it must be a whole number"),
        ({"router_bias": 1}, "`routing.router_bias` is 1; it must be true or false or null"),
        ({"layers": [0.5]}, r"`routing.layers` is \[0.5\]; it must be a list of whole numbers or null"),
        ({"router": "best"}, "`routing.router` is 'best'; it must be one of mlp, linear"),
        ({"router": "static"}, "`routing.router` is static; with `routing.target` mlp it must be one of mlp, linear"),
        ({"router": "gate", "target": "both"}, "with `routing.target` both it must be one of mlp, linear"),
        ({"k_heads": 2}, "`routing.k_heads` is 2; it needs `routing.target` attention or both"),
        ({"k_heads": 0, "target": "both"}, "`routing.k_heads` is 0"),
        ({"target": "attention", "n_pathways": 8}, "`routing.n_pathways` is 8; .* it must be left at 16"),
        ({"target": "attention", "k": 2}, "`routing.k` is 2; .* it must be left at 4"),
        ({"target": "attention", "partition": "random"}, "`routing.partition` is random"),
        ({"target": "attention", "rule": "top_p"}, "`routing.rule` is top_p"),
        ({"target": "attention", "n_shared": 1}, "`routing.n_shared` is 1"),
        ({"target": "attention", "backend": "dense"}, "`routing.backend` is dense"),
        ({"target": "attention", "gate": "relu"}, "`routing.gate` is relu; it needs `routing.rule` relu"),
        (
            {"target": "attention", "router": "static", "gate": "ramp"},
            "`routing.gate` is ramp; with `routing.router` st",
        ),
        ({"n_shared_heads": 1}, r"`routing.n_shared_heads` is 1; .* below `routing.k_heads` \(null\)"),
        (
            {"target": "both", "k_heads": 2, "n_shared_heads": 2},
            r"`routing.n_shared_heads` is 2; .* `routing.k_heads` .2.",
        ),
        ({"target": "attention", "k_heads": 2, "n_shared_heads": -1}, "`routing.n_shared_heads` is -1; it must be at"),
        (
            {"target": "attention", "router": "static", "k_heads": 2, "n_shared_heads": 1},
            r"`routing.n_shared_heads` is 1; .* `routing.router` query_norm or static 0 \(it is static\)",
        ),
        ({"target": "attention", "router": "static", "router_init": "random"}, "`routing.router_init` is random"),
        ({"rule": "relu", "gate": "unit"}, "`routing.gate` is unit; with `routing.rule` relu it must be relu"),
        ({"rule": "relu", "router_bias": False}, "`routing.router_bias` is false; with `routing.rule` relu it"),
        ({"gate": "relu"}, "`routing.gate` is relu; it needs `routing.rule` relu, not top_k"),
        ({"rule": "relu", "k": 16}, "`routing.k` is 16, every pathway; with `routing.rule` relu it must be lower"),
        (
            {"importance": "loss", "router_init": "random", "partition": "random"},
            "`routing.importance` is loss; it needs",
        ),
        ({"refit": True, "target": "attention"}, "`routing.refit` is true; with `routing.target` attention"),
        ({"importance": "gain"}, "`routing.importance` is 'gain'; it must be one of norm, loss or null"),
        (
            {"importance": "loss", "target": "attention", "router": "query_norm"},
            "`routing.importance` is loss; .* or of heads `routing.router` static",
        ),
        ({"importance": "loss", "target": "attention", "router_init": "random"}, "`routing.importance` is loss; it"),
        ({"pool": 3}, r"`routing.pool` is 3; it must be a number, or \[low, high\], from `routing.k` \(4\) to"),
        ({"pool": 17}, "`routing.pool` is 17"),
        ({"pool": [8, 6]}, r"`routing.pool` is \[8, 6\]"),
        ({"pool": [4, 8, 9]}, r"`routing.pool` is \[4, 8, 9\]"),
        ({"pool_block": 16}, "`routing.pool_block` is 16 and `routing.pool` null; it must be at least 1, and needs a"),
        ({"pool": 8, "target": "attention"}, "`routing.pool` is 8; .* it must be left at null"),
        ({"pool": 8, "pool_block": 0}, "`routing.pool_block` is 0"),
        ({"pool": 8, "router": "gate"}, "`routing.pool` is 8; with `routing.router` gate it must be null"),
        ({"rule": "relu", "router": "gate"}, "`routing.rule` is relu; with `routing.router` gate it must be top_k"),
    ],
)
def test_an_impossible_configuration_names_flag_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(**fields)


def test_stock_changes_defaults_and_keeps_what_agrees():
    assert (RoutingConfig().router, RoutingConfig().router_bias, RoutingConfig().gate) == ("mlp", True, "ramp")
    made = RoutingConfig(stock=True, k=2, gate="softmax")
    assert (made.router, made.router_bias, made.gate) == ("linear", False, "softmax")
    assert RoutingConfig.from_dict(made.to_dict()) == made


def test_layers_win_over_every_n_layers():
    assert RoutingConfig(every_n_layers=3).routed_layers(8) == [0, 3, 6]
    assert RoutingConfig(every_n_layers=3, first_layer=1).routed_layers(8) == [1, 4, 7]
    with pytest.raises(ValueError, match=r"`routing.first_layer` is 8; the model has layers 0 to 7"):
        RoutingConfig(first_layer=8).routed_layers(8)
    assert RoutingConfig(every_n_layers=2, first_layer=1, last_layer=-2).routed_layers(8) == [1, 3, 5]
    assert RoutingConfig(every_n_layers=1, last_layer=2).routed_layers(8) == [0, 1, 2]
    for last in (8, -9):
        with pytest.raises(ValueError, match=rf"`routing.last_layer` is {last}; the model has layers 0 to 7"):
            RoutingConfig(last_layer=last).routed_layers(8)
    with pytest.raises(ValueError, match=r"`routing.first_layer` is 1 and `routing.last_layer` -2; no layer of 0 to 1"):
        RoutingConfig(first_layer=1, last_layer=-2).routed_layers(2)
    assert RoutingConfig(layers=[5, 1]).routed_layers(8) == [1, 5]
    with pytest.raises(ValueError, match=r"`routing.layers` is \[8\]; the model has layers 0 to 7"):
        RoutingConfig(layers=[8]).routed_layers(8)


@pytest.mark.parametrize("module", [config, option_types])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
