import doctest

import pytest

from slms.routing import RoutingConfig, stock
from slms.routing.stock import NEEDED, routing_obstacles

OTHER = {
    "rule": "top_p",
    "router": "mlp",
    "router_bias": True,
    "gate": "sigmoid",
    "mean_compensation": True,
    "pool": 12,
}


@pytest.mark.parametrize("name", NEEDED)
def test_each_option_in_the_way_is_named_alone_and_what_it_names_lifts_it(name):
    assert routing_obstacles(RoutingConfig(**NEEDED)) == []
    (found,) = routing_obstacles(RoutingConfig(**NEEDED | {name: OTHER[name]}))
    assert name in found.what and str(OTHER[name]).lower() in found.what
    option, _, value = found.lift.removeprefix("--model.routing.").partition("=")
    typed = {"true": True, "false": False, "null": None}.get(value, value)
    assert routing_obstacles(RoutingConfig(**NEEDED | {name: OTHER[name]} | {option: typed})) == []


def test_doctests():
    result = doctest.testmod(stock)
    assert result.attempted > 0 and result.failed == 0
