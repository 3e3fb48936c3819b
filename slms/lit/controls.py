"""The rivals of a routed run, each with its text, objective and recipe: what a claim about routing must beat.

A control is a row of `CONTROLS`: a function that makes the model to train from the dense base and the run's plan.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from slms.measure.equal_time import equal_time
from slms.measure.schema import Role
from slms.models.convert import route, with_fresh_mlps
from slms.models.cut import cut
from slms.models.flops import mlp_flops
from slms.models.place import layer_of, place_name
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RULES, RoutingConfig
from slms.routing.combinations import FREE


class Plan(NamedTuple):
    """What a run and its controls share."""

    routing: RoutingConfig
    calibration: Tensor
    """token ids [b, t]"""
    agreed: Callable[[Any], Any] = lambda value: value
    """the first process's value, on every process: measured times differ between them"""
    record: dict[str, Any] | None = None
    """of the run that is resumed"""


class Made(NamedTuple):
    """The model to train, and what a results file says of how it was made."""

    net: PreTrainedModel
    record: dict[str, Any]


class Control(NamedTuple):
    make: Callable[[PreTrainedModel, Plan], Made]
    role: Role
    words: str
    """what it is, for tables"""


def _dense(base: PreTrainedModel, plan: Plan) -> Made:
    return Made(copy.deepcopy(base), {})


def _frozen_router(base: PreTrainedModel, plan: Plan) -> Made:
    net = route(base, plan.routing, plan.calibration)
    for module in routed_modules(net).values():
        module.router.requires_grad_(False)
        gates = (module.W_gate, module.b_gate) if isinstance(module, RoutedMLP) else ()
        for gate in gates if plan.routing.router == "gate" else ():
            if gate is not None:
                gate.requires_grad_(False)
    return Made(net, {})


def _heads_by(router: str, base: PreTrainedModel, plan: Plan, **own: Any) -> Made:
    """The model of a run that routes heads, whose heads something without weights chooses."""
    own |= {"router": router, "router_bias": None, "router_init": None, "gate": None, "n_shared_heads": 0}
    return Made(route(base, dataclasses.replace(plan.routing, **own), plan.calibration), {})


def _query_norm(base: PreTrainedModel, plan: Plan) -> Made:
    return _heads_by("query_norm", base, plan, importance="norm")


def _static(size: Callable[[PreTrainedModel, RoutingConfig], dict[str, Any]]) -> Callable[..., Made]:
    """The base cut down to the neurons that `size` gives, by place, beside what they were decided by.

    Of a run that routes heads: as many heads of each group, of the greatest mean contribution, for every token.
    """

    def make(base: PreTrainedModel, plan: Plan) -> Made:
        if plan.routing.target == "attention":
            return _heads_by("static", base, plan)
        record = plan.record or plan.agreed(size(base, plan.routing))
        widths = {layer_of(place): width for place, width in record["neurons"].items()}
        return Made(cut(base, widths, plan.calibration), record)

    return make


def equal_neurons(base: PreTrainedModel, routing: RoutingConfig) -> dict[str, Any]:
    """As many neurons as the routed model executes for a token."""
    _, layers = with_fresh_mlps(base, routing)
    return {"neurons": {m.place: round(m.offsets[-1] * routing.k / routing.n_pathways) for m in layers.values()}}


def equal_flops(base: PreTrainedModel, routing: RoutingConfig) -> dict[str, Any]:
    """So many that the MLPs take the FLOPs of the routed ones, routers and mean compensation included; at most all."""
    _, layers = with_fresh_mlps(base, routing)
    costs = {m.place: mlp_flops(m) for m in layers.values()}
    return {"neurons": {place: min(c.neurons, round(c.run / c.per_neuron)) for place, c in costs.items()}}


def as_fast(base: PreTrainedModel, routing: RoutingConfig) -> dict[str, Any]:
    """So many that the MLPs decode a token in the routed ones' time on this machine; at most all."""
    found = equal_time(base, routing)
    neurons = {place_name(i): width for i, width in found.widths.items()}
    return {"neurons": neurons, "routed_us": found.routed_us, "dense_us": found.dense_us}


CONTROLS: dict[str, Control] = {
    "dense": Control(_dense, "dense", "the base, trained alike"),
    "static": Control(
        _static(equal_neurons), "static", "the best fixed neurons (or heads), as many as the routed model executes"
    ),
    "static_flops": Control(_static(equal_flops), "static", "the best fixed neurons at the routed model's FLOPs"),
    "static_time": Control(_static(as_fast), "static", "the best fixed neurons at the routed model's decode time"),
    "frozen_router": Control(
        _frozen_router, "routed", "what chooses (a router, or the MLPs' gates) as converted, the rest trained"
    ),
    "query_norm": Control(_query_norm, "routed", "MoH's rule without weights: the heads of the greatest query norms"),
}
"""`--model.control` takes these names."""


def check_control(name: str, routing: RoutingConfig | None) -> None:
    """Raise ValueError if a run with this routing cannot have this control."""
    if routing is None:
        raise ValueError(f"model.control is {name} and model.routing null; it is the control of a routed run")
    heads = ("static", "dense", "frozen_router", "query_norm")
    if name == "query_norm" and (routing.target != "attention" or routing.router == name):
        raise ValueError(
            f"model.control is {name}, model.routing.target {routing.target} and router {routing.router}; it is the "
            "control of heads alone that another router chooses"
        )
    if routing.target == "attention" and name not in heads:
        raise ValueError(
            f"model.control is {name} and model.routing.target attention; heads have the controls {', '.join(heads)}"
        )
    if routing.target == "both" and CONTROLS[name].role == "static":
        raise ValueError(f"model.control is {name} and model.routing.target both; it needs target mlp or attention")
    if name == "frozen_router" and routing.router in FREE:
        raise ValueError(f"model.control is {name} and model.routing.router {routing.router}; there is no router")
    if name == "frozen_router" and RULES[routing.rule].held == "penalty":
        raise ValueError(
            f"model.control is {name} and model.routing.rule {routing.rule}; training the routers holds its density"
        )
    if name == "static_time" and routing.router_layers > 1:
        raise ValueError(
            f"model.control is static_time and model.routing.router_layers {routing.router_layers}; it times layers "
            "alone, so it needs 1"
        )
    timed = name == "static_time" and routing.router != "gate"  # they run otherwise for every token, in PyTorch
    fitting = [rule for rule, row in RULES.items() if row.fixed or (row.held and not timed)]
    if CONTROLS[name].role == "static" and routing.rule not in fitting:
        raise ValueError(
            f"model.control is {name} and model.routing.rule {routing.rule}; it needs a rule that executes as many "
            f"pathways for every token{'' if timed else ', or on average'}: {', '.join(fitting)}"
        )


def make_control(name: str, base: PreTrainedModel, plan: Plan) -> Made:
    """Make the model that a control trains; the base does not change."""
    made = CONTROLS[name].make(base, plan)
    return made._replace(record={"name": name} | made.record)
