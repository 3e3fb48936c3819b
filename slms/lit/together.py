"""Refuses options of a language model's run that do not go together, before anything is loaded."""

from slms.lit.controls import check_control
from slms.lit.distill import DistillConfig
from slms.lit.moves import AssignmentConfig, check_assignment
from slms.routing import RULES, RoutingConfig
from slms.routing.balance import BalanceConfig


def check_together(
    routing: RoutingConfig | None,
    control: str | None,
    balance: BalanceConfig | None,
    distill: DistillConfig,
    assignment: AssignmentConfig | None,
    gate_ramp: float,
    k_anneal: float,
) -> None:
    """Raise ValueError for arguments of `LanguageModel` that are out of range or exclude each other.

    distill: as it applies to this run (`DistillConfig.resolved`).
    """
    if not 0 <= k_anneal < 1:
        raise ValueError(f"model.k_anneal is {k_anneal}; it must lie in [0, 1)")
    if not 0 < gate_ramp <= 1:
        raise ValueError(f"model.gate_ramp is {gate_ramp}; it must lie in (0, 1]")
    if control is not None:
        check_control(control, routing)
    if assignment is not None:
        check_assignment(routing)
    if routing is None:
        return
    if k_anneal and not RULES[routing.rule].fixed:
        raise ValueError(f"model.k_anneal is {k_anneal} and model.routing.rule {routing.rule}; only top_k anneals k")
    if k_anneal and routing.refit:
        raise ValueError(
            f"model.k_anneal is {k_anneal} and model.routing.refit true, which fits k from the start; give one"
        )
    if balance is not None and routing.router not in ("mlp", "linear"):
        raise ValueError(
            f"model.balance is given and model.routing.router {routing.router}, which has no router to balance"
        )
    if balance is not None and balance.bias_rate and routing.rule == "relu":
        raise ValueError(f"model.balance.bias_rate is {balance.bias_rate} and model.routing.rule relu; it needs 0")
    if distill.mlp and routing.target == "attention":
        raise ValueError(f"model.distill.mlp is {distill.mlp} and model.routing.target attention; no MLP is routed")
