"""What training keeps for each routed module beside the weights: its global batch's loads, and its density's budget.

The keys of these dicts are places without their dot, which a submodule's name may not hold.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slms.models.routed import routed_modules
from slms.routing import Follower, GateSelector, PathwayRouter, Routes, budget_of
from slms.routing.balance import BalanceConfig, GlobalBalance, bias_update, z_loss
from slms.routing.budget import AdaptiveL1, GateControl, ThresholdControl


def key_of(place: str) -> str:
    """The name of a place as a submodule.

    >>> key_of("L3.mlp")
    'L3_mlp'
    """
    return place.replace(".", "_")


class Balances(nn.ModuleDict):
    """The global load balance of every place that has a router; one that several layers share counts once."""

    def follow(self, net: nn.Module, config: BalanceConfig) -> None:
        """Make a balance for each routed module of a model."""
        for place, module in routed_modules(net).items():
            routing = module.config
            if isinstance(module.router, PathwayRouter):
                sizes = routing.n_pathways - module.n_always, config.momentum, 0, module.n_groups
                self[key_of(place)] = GlobalBalance(*sizes)

    def terms(self, net: nn.Module, routes: Mapping[str, Routes]) -> dict[str, Tensor]:
        """GLBL and z-loss of a batch, each the mean over routers."""
        modules = routed_modules(net)
        balance, z = [], []
        for place, r in ((place, r) for place, r in routes.items() if key_of(place) in self):
            module = modules[place]
            probs, chosen, scores = (part[:, module.competing] for part in (r.probs, r.chosen, r.scores))
            balance.append(self._of(place)(probs, chosen))
            z.append(z_loss(scores.unflatten(1, (module.n_groups, -1)).flatten(0, 1)))  # the mean over groups
        return {"balance": torch.stack(balance).mean(), "z": torch.stack(z).mean()}

    def step(self, net: nn.Module, config: BalanceConfig) -> None:
        """Close the optimizer step's global batch and move the selection biases; every rank must call it."""
        for place, module in routed_modules(net).items() if self else ():
            if not isinstance(module.router, PathwayRouter):
                continue
            load = self._of(place).step()
            if config.bias_rate and next(module.router.parameters()).requires_grad:
                bias = module.router.selection_bias[module.competing]
                bias_update(bias, load, config.bias_rate)
                module.router.selection_bias[module.competing] = bias

    def _of(self, place: str) -> GlobalBalance:
        balance = self[key_of(place)]
        assert isinstance(balance, GlobalBalance)
        return balance


class Budgets(nn.ModuleDict):
    """What holds the density of every place whose rule needs it (`slms.routing.budget`)."""

    def follow(self, net: nn.Module) -> None:
        """Make a budget for each routed module of a model that needs one."""
        for place, module in routed_modules(net).items():
            budget = None if isinstance(module.router, Follower) else budget_of(module.config)
            if budget is not None:
                self[key_of(place)] = budget

    def terms(self, net: nn.Module, routes: Mapping[str, Routes]) -> dict[str, Tensor]:
        """Count a batch's routes; the penalty on the density, a mean over routed modules, if the rule has one."""
        modules = routed_modules(net)
        held = {place: r for place, r in routes.items() if key_of(place) in self}
        found = [self._of(place)(r, modules[place].config) for place, r in held.items()]
        penalties = [penalty for penalty in found if penalty is not None]
        return {"density": torch.stack(penalties).mean()} if penalties else {}

    def step(self, net: nn.Module) -> None:
        """Correct each place's density after an optimizer step; every rank must call it."""
        for place, module in routed_modules(net).items():
            budget = self._modules.get(key_of(place))
            if isinstance(budget, GateControl):
                assert isinstance(module.router, GateSelector)
                budget.step(module.router, module.k)
            elif budget is not None:
                assert isinstance(module.router, PathwayRouter)
                self._of(place).step(module.router, module.k)

    def _of(self, place: str) -> ThresholdControl | AdaptiveL1:
        budget = self[key_of(place)]
        assert isinstance(budget, ThresholdControl | AdaptiveL1)
        return budget
