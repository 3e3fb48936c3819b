import doctest

import pytest

from slms.routing import RoutingConfig, stock
from slms.routing.stock import NEEDED, listed, routing_obstacles

OTHER = {
    "target": "both",
    "k_heads": 1,
    "n_shared_heads": 1,
    "rule": "top_p",
    "router": "mlp",
    "router_bias": True,
    "gate": "sigmoid",
    "k_out": 2,
    "mean_compensation": True,
    "pool": 12,
    "router_layers": 2,
}


def applied(lift: str) -> dict:
    """The options that the flags of a message set."""
    typed = {"true": True, "false": False, "null": None, "0": 0, "1": 1}
    pairs = (flag.removeprefix("--model.routing.").split("=") for flag in lift.split())
    return {option: typed.get(value, value) for option, value in pairs}


@pytest.mark.parametrize("name", NEEDED)
def test_each_option_in_the_way_is_named_alone_and_what_it_names_lifts_it(name):
    assert routing_obstacles(RoutingConfig(**NEEDED)) == []
    options = NEEDED | {"stock": True, name: OTHER[name]}
    (found,) = routing_obstacles(RoutingConfig(**options))
    assert name in found.what and str(OTHER[name]).lower() in found.what
    assert routing_obstacles(RoutingConfig(**options | applied(found.lift))) == []


@pytest.mark.parametrize(
    "options",
    [
        {"router": "gate"},
        {"router": "gate", "gate": "softmax", "rule": "top_p", "k_out": 3, "refit": True},
        {"target": "attention"},
        {"target": "attention", "router": "static", "gate": "softmax", "k_heads": 1, "n_pathways": 8},
        {"target": "both", "router": "gate"},
        {"rule": "relu", "gate": "softmax"},
        {"gate": "relu", "router": "mlp", "mean_compensation": True},
        {"pool": 8, "pool_block": 16, "rule": "controlled"},
    ],
)
def test_all_that_contradicts_stock_is_named_at_once_as_it_is_typed(options):
    """Also what could not be combined without `stock`, so that no second try is refused."""
    asked = {"stock": True} | options
    found = routing_obstacles(RoutingConfig(**asked))
    names = {one.what.split("`")[1].removeprefix("routing.") for one in found}
    assert names >= {name for name in options if name in NEEDED and options[name] != NEEDED[name]}
    assert not {"True", "False", "None"} & set(listed(found).replace("=", " ").replace(")", " ").split())
    for one in found:
        asked |= applied(one.lift)
    assert routing_obstacles(RoutingConfig(**asked)) == []


def test_doctests():
    result = doctest.testmod(stock)
    assert result.attempted > 0 and result.failed == 0
