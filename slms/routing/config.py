"""The routing configuration, with every routing default; a saved model keeps it in its ``config.json``."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from slms.routing.combinations import FREE, MLP_ONLY, OF_FREE, OF_GATE, OF_RELU, ROUTED
from slms.routing.option_types import described, fits, typed
from slms.routing.rules import GATES, RULES


@dataclass(frozen=True)
class RoutingConfig:
    """Options for splitting the MLPs of a dense model into pathways and choosing among them for each token.

    Args:
        n_pathways: number of pathways that each MLP is split into; at most d_ff.
        k: number of pathways that each token executes under the rule `top_k`, or on average under `controlled`
            and `relu`, including shared ones.
        every_n_layers: route every n-th layer, starting at `first_layer`; ignored when `layers` is given.
        first_layer: the first layer that `every_n_layers` routes.
        last_layer: the last layer that `every_n_layers` may route; a negative index counts from the end, so -1 is the
            model's last layer.
        layers: indices of the layers to route; they override `every_n_layers`, `first_layer` and `last_layer`.
        partition: how neurons are grouped into pathways; `coactivation` (those that contribute to the same tokens) and
            `learned` (such that a router's `k` pathways hold most of the contributions) need calibration tokens.
        router: what scores the pathways: `linear`, a map of the MLP's input; `mlp`, two with a ReLU between; or, in a
            gated MLP, `gate`, its own gate activations, best with few neurons a pathway, down to one (`n_pathways`
            = d_ff). By default `mlp`, or `linear` under `stock`. Heads alone (`target` attention) can also be chosen by
            `query_norm`, MoH's rule without weights, or be `static`, the same for every token.
        router_hidden: hidden width of the `mlp` router.
        router_bias: whether each pathway's score has a bias; by default true, or false under `stock`.
        router_init: `norm`, the default, fits scores to pathways' output norms on calibration tokens (D2DMoE); `random`
            is seeded.
        importance: how calibration weighs what a neuron, pathway or head adds to the output: by its `norm`, or by how
            much the model's predictions, hence its `loss`, depend on it (Fisher information). By default `loss` with
            the router `gate`, else `norm`.
        refit: refit the down-projections at conversion, so that what a token chooses comes closest to the dense output.
            By default true with the router `gate`.
        rule: how scores decide which pathways a token executes. Under `controlled`, as many as exceed a threshold, at
            least one; under `relu`, those with positive scores, which are also the gates. Training holds their mean to
            `k`.
        top_p: share of router probability that the chosen pathways must reach under the rule `top_p`.
        tau: the rule `threshold` keeps pathways whose predicted norm is at least (1 − tau) of the token's largest.
        gate: the factor on a chosen pathway's output; `slms.routing.rules` has the equations. By default `ramp`, or
            `softmax` under `stock`, `unit` with the router `gate` and `relu` with the rule `relu`.
        k_out: of the `k` neurons that a token's gates choose, so many, on which the output depends most by their
            activations, go through the down-projection; null: all. It needs the router `gate`, single neurons and a `k`
            below `n_pathways`.
        n_shared: pathways 0 … n_shared − 1 run for every token and count towards `k`.
        pool: number of pathways, shared ones included, that a block of tokens may choose from: those with the greatest
            router probability over all earlier blocks of the document (docs/pools.md). Of a range [low, high], each
            training step draws a number, and evaluation takes `low`. null lets every token choose from all.
        pool_block: tokens of a block; by default 32 if `pool` is given.
        router_layers: number of consecutive routed layers that share one router's choice: that of the first, which is
            fitted to what the pathways of all of them contribute (docs/pools.md). It needs `target` mlp and a router
            `mlp` or `linear`.
        mean_compensation: add the calibrated mean output of every skipped pathway.
        backend: the backend of `kernels.routed_mlp` that executes the MLP.
        seed: seeds the partition and the router's initial weights; by default 0, in train.py `seed_everything`.
        stock: route so that `eval.py export` can write the model as a stock mixture of experts (docs/leaving.md); it
            changes the defaults of `router`, `router_bias` and `gate`; `route` and a training run refuse, once they
            know the base, what cannot be exported.
        target: what is routed in the chosen layers: the `mlp`, the query heads of the `attention`, or `both`. Keys and
            values stay whole.
        k_heads: number of query heads that each token executes of every group of heads that shares keys and values
            (all heads of a layer are one group if none share them); null executes all. Their gate is `gate` with
            `target` attention, by default `unit`, and always `unit` with `both`.
        n_shared_heads: heads of each group that run for every token and count towards `k_heads`: on calibration tokens,
            those of the greatest mean contribution.
    """

    n_pathways: int = 16
    k: int = 4
    every_n_layers: int = 2
    first_layer: int = 0
    last_layer: int = -1
    layers: list[int] | None = None
    partition: Literal["contiguous", "random", "kmeans", "coactivation", "learned"] = "coactivation"
    router: Literal["mlp", "linear", "gate", *FREE] | None = None  # type: ignore[valid-type]
    router_hidden: int = 128
    router_bias: bool | None = None
    router_init: Literal["norm", "random"] | None = None
    importance: Literal["norm", "loss"] | None = None
    refit: bool | None = None
    rule: Literal[*RULES] = "top_k"  # type: ignore[valid-type]  # names of a table
    top_p: float = 0.5
    tau: float = 0.5
    gate: Literal[*GATES] | None = None  # type: ignore[valid-type]  # names of a table
    k_out: int | None = None
    n_shared: int = 0
    pool: int | list[int] | None = None
    pool_block: int | None = None
    router_layers: int = 1
    mean_compensation: bool = False
    backend: str = "auto"
    seed: int | None = None
    stock: bool = False
    target: Literal["mlp", "attention", "both"] = "mlp"
    k_heads: int | None = None
    n_shared_heads: int = 0

    def __post_init__(self) -> None:
        if self.target == "attention" and self.gate is None:
            object.__setattr__(self, "gate", "unit")
        own = {"gate": OF_GATE} | dict.fromkeys(FREE, OF_FREE)
        defaults = ROUTED[self.stock is True] | (OF_RELU if self.rule == "relu" else {})
        for name, value in own.get(str(self.router), defaults).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.importance is None:
            object.__setattr__(self, "importance", "loss" if self.router == "gate" else "norm")
        if self.refit is None:
            object.__setattr__(self, "refit", self.router == "gate")
        if self.pool is not None and self.pool_block is None:
            object.__setattr__(self, "pool_block", 32)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not fits(field.type, value):
                said = repr(value) if isinstance(value, str) else typed(value)
                raise ValueError(f"`routing.{field.name}` is {said}; it must be {described(field.type)}.")
        for name in ("n_pathways", "k", "every_n_layers", "router_hidden", "router_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`routing.{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.k > self.n_pathways:
            raise ValueError(f"`routing.k` is {self.k}; it must be at most `routing.n_pathways` ({self.n_pathways}).")
        if not 0 <= self.n_shared < self.k:
            raise ValueError(
                f"`routing.n_shared` is {self.n_shared}; it must be at least 0 and below `routing.k` ({self.k})."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"`routing.top_p` is {self.top_p}; it must be above 0 and at most 1.")
        if not 0.0 <= self.tau <= 1.0:
            raise ValueError(f"`routing.tau` is {self.tau}; it must be between 0 and 1.")
        for name in ("first_layer", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"`routing.{name}` is {getattr(self, name)}; it must be at least 0.")
        layers = self.layers
        if layers is not None and (not layers or min(layers) < 0 or len(set(layers)) != len(layers)):
            raise ValueError(f"`routing.layers` is {layers}; it must name one or more layers, each once, from 0.")
        if self.rule == "relu" and self.k == self.n_pathways:
            raise ValueError(f"`routing.k` is {self.k}, every pathway; with `routing.rule` relu it must be lower.")
        if self.k_heads is not None and self.k_heads < 1:
            raise ValueError(f"`routing.k_heads` is {self.k_heads}; it must be at least 1, or null.")
        self._check_pool()
        self._check_weighed()
        if not self.stock:  # `slms.routing.stock` names all of these at once, with what else is in its way
            self._check_router(own.get(str(self.router), {}))
            self._check_target()

    def _check_router(self, own: dict[str, Any]) -> None:
        """Refuse what the router, with its own needs, and the rule cannot have."""
        if self.k_out is not None and (self.router != "gate" or not 1 <= self.k_out <= self.k < self.n_pathways):
            raise ValueError(
                f"`routing.k_out` is {self.k_out}; it must be from 1 to `routing.k` ({self.k}), with `routing.router` "
                f"gate, not {self.router}, and `routing.k` below `routing.n_pathways` ({self.n_pathways})."
            )
        if self.router == "gate" and self.rule not in ("top_k", "controlled"):
            raise ValueError(
                f"`routing.rule` is {self.rule}; with `routing.router` gate it must be top_k or controlled."
            )
        combined = {"router": own, "rule": OF_RELU if self.rule == "relu" else {}}
        for option, needed in combined.items():
            for name, value in needed.items():
                if getattr(self, name) != value:
                    raise ValueError(
                        f"`routing.{name}` is {typed(getattr(self, name))}; with `routing.{option}` "
                        f"{getattr(self, option)} it must be {typed(value)}."
                    )
        if self.gate == "relu" and self.rule != "relu":
            raise ValueError(f"`routing.gate` is relu; it needs `routing.rule` relu, not {self.rule}.")

    def _check_target(self) -> None:
        """Refuse what the target cannot have, and what would do nothing."""
        possible = {"mlp": ("mlp", "linear", "gate"), "attention": ("mlp", "linear", *FREE), "both": ("mlp", "linear")}
        if self.router not in possible[self.target]:
            raise ValueError(
                f"`routing.router` is {self.router}; with `routing.target` {self.target} it must be one of "
                f"{', '.join(possible[self.target])}."
            )
        if self.target == "mlp" and self.k_heads is not None:
            raise ValueError(f"`routing.k_heads` is {self.k_heads}; it needs `routing.target` attention or both.")
        if self.n_shared_heads and (self.router in FREE or not 0 < self.n_shared_heads < (self.k_heads or 0)):
            raise ValueError(
                f"`routing.n_shared_heads` is {self.n_shared_heads}; it must be at least 0 and below `routing.k_heads` "
                f"({typed(self.k_heads)}), and with `routing.router` {' or '.join(FREE)} 0 (it is {self.router})."
            )
        if self.target == "both" and self.router_layers > 1:
            raise ValueError(
                f"`routing.router_layers` is {self.router_layers}; with `routing.target` both it must be 1, as heads "
                "share no router."
            )
        if self.target == "attention" and self.refit:
            raise ValueError(
                "`routing.refit` is true; with `routing.target` attention, which routes no MLP, it must be false."
            )
        if self.target == "attention":
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            for name in MLP_ONLY:
                if getattr(self, name) != defaults[name]:
                    raise ValueError(
                        f"`routing.{name}` is {typed(getattr(self, name))}; with `routing.target` attention, which "
                        f"routes no MLP, it must be left at {typed(defaults[name])}."
                    )

    def _check_weighed(self) -> None:
        """Refuse a weight on contributions that nothing reads."""
        parts = self.target != "attention" and self.partition in ("coactivation", "learned")
        weighs = self.router in ("gate", "static") or self.router_init == "norm" or parts
        if self.importance == "loss" and not weighs:
            raise ValueError(
                "`routing.importance` is loss; it needs `routing.router_init` norm, or a partition by contributions "
                "(coactivation or learned), or of heads `routing.router` static."
            )

    def _check_pool(self) -> None:
        if self.pool_block is not None and (self.pool is None or self.pool_block < 1):
            raise ValueError(
                f"`routing.pool_block` is {self.pool_block} and `routing.pool` {typed(self.pool)}; it must be at "
                "least 1, and needs a pool."
            )
        sizes = self.pool if isinstance(self.pool, list) else [] if self.pool is None else [self.pool] * 2
        if self.pool is not None and (len(sizes) != 2 or not self.k <= sizes[0] <= sizes[1] <= self.n_pathways):
            raise ValueError(
                f"`routing.pool` is {self.pool}; it must be a number, or [low, high], from `routing.k` ({self.k}) to "
                f"`routing.n_pathways` ({self.n_pathways})."
            )

    def with_fixed_k(self) -> Self:
        """This configuration, with the number of pathways that its rule holds on average for every token."""
        if not RULES[self.rule].held:
            return self
        return replace(self, rule="top_k", gate="unit" if self.gate == "relu" else self.gate)

    def k_out_at(self, k: int) -> float | None:
        """Neurons that go through W_out where k are chosen: `k_out` in proportion, or None if all of them do."""
        return None if self.k_out is None or k == self.n_pathways else k * self.k_out / self.k

    def routed_layers(self, n_layers: int) -> list[int]:
        """Indices of the layers to route in a model of ``n_layers``.

        >>> RoutingConfig(every_n_layers=2, first_layer=1).routed_layers(6)
        [1, 3, 5]
        >>> RoutingConfig(every_n_layers=1, first_layer=1, last_layer=-2).routed_layers(6)
        [1, 2, 3, 4]
        """
        if self.layers is None:
            last = self.last_layer + n_layers if self.last_layer < 0 else self.last_layer
            for name, layer in (("first_layer", self.first_layer), ("last_layer", last)):
                if not 0 <= layer < n_layers:
                    value = getattr(self, name)
                    raise ValueError(f"`routing.{name}` is {value}; the model has layers 0 to {n_layers - 1}.")
            if last < self.first_layer:
                raise ValueError(
                    f"`routing.first_layer` is {self.first_layer} and `routing.last_layer` {self.last_layer}; "
                    f"no layer of 0 to {n_layers - 1} lies between."
                )
            return list(range(self.first_layer, last + 1, self.every_n_layers))
        if max(self.layers) >= n_layers:
            raise ValueError(f"`routing.layers` is {self.layers}; the model has layers 0 to {n_layers - 1}.")
        return sorted(self.layers)

    def leaders(self, n_layers: int) -> dict[int, int]:
        """By routed layer of a model of ``n_layers``, the one whose router it shares, which is itself if it leads.

        >>> RoutingConfig(every_n_layers=2, router_layers=2).leaders(6)
        {0: 0, 2: 0, 4: 4}
        """
        layers = self.routed_layers(n_layers)
        return {layer: layers[i - i % self.router_layers] for i, layer in enumerate(layers)}

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RoutingConfig":
        """Invert :meth:`to_dict`. An absent field takes its default; an unknown one raises ``ValueError``."""
        if not isinstance(values, dict):
            raise ValueError(f"`routing` is {values!r}; it must be a mapping of options.")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known, key=str)
        if unknown:
            raise ValueError(
                f"`routing.{unknown[0]}` is not a routing option; the options are {', '.join(sorted(known))}."
            )
        return cls(**values)
