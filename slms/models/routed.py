"""The base class of routed modules, and functions that find, set and watch a model's routed modules by place.

A new kind of routed module is a subclass of `Routed` (as `RoutedMLP` and `RoutedHeads` are); training, balancing,
counting, logging and reporting then find it at its place.

Shapes: n tokens (b·t), p pathways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import torch
from torch import Tensor, nn

from slms.models.place import parse_place, place_name
from slms.routing import RULES, Follower, GateSelector, HeadSelector, PathwayRouter, Routes, RoutingConfig

if TYPE_CHECKING:
    from slms.models.pools import Pass


class Routed(nn.Module):
    """A module whose router chooses, for each token, which of its pathways are executed.

    Pathway p consists of units (in an MLP, neurons) ``offsets[p]`` to ``offsets[p + 1]``. A subclass sets ``router``,
    passes its :meth:`routes` to ``recorder`` if there is one.
    """

    units: ClassVar[str]
    """The word for what its pathways consist of, such as `neurons`."""
    part: ClassVar[str]
    """The part of a layer that it replaces, one of ``slms.models.place.PARTS``."""
    router: PathwayRouter | Follower | GateSelector | HeadSelector
    n_groups: int = 1
    """Groups of equally many pathways, in each of which a token chooses equally many."""

    def __init__(self, layer_index: int, offsets: tuple[int, ...], k: int) -> None:
        super().__init__()
        self.layer_index, self.offsets, self._k = layer_index, offsets, k
        self.recorder: Callable[[Routes], None] | None = None
        self.pool_pass: Pass | None = None
        self.drawn_pool: int | None = None

    @property
    def place(self) -> str:
        """The module's name in logs, results and figures, such as ``L3.mlp``."""
        return place_name(self.layer_index, self.part)

    @property
    def config(self) -> RoutingConfig:
        """The router's configuration, which decides at run time."""
        return self.router.config

    @property
    def k(self) -> int:
        """Number of pathways that the rule ``top_k`` chooses per token; you may set it, for annealing."""
        return self._k

    @k.setter
    def k(self, value: int) -> None:
        low, high = self.n_always + self.n_groups, self.config.n_pathways
        if not low <= value <= high:
            raise ValueError(f"k is {value}; it must be from {low} to `routing.n_pathways` ({high}).")
        if value % self.n_groups:
            raise ValueError(f"k is {value}; it must be a multiple of the groups of {self.place} ({self.n_groups}).")
        self._k = value

    @property
    def n_always(self) -> int:
        """Number of pathways that run for every token and count towards k."""
        return self.config.n_shared

    @property
    def competing(self) -> slice | Tensor:
        """The pathways that do not, as an index."""
        return slice(self.n_always, None)

    @property
    def k_out(self) -> int | None:
        """Neurons per token that a second choice leaves for W_out; it follows k in proportion.

        None if all that are chosen go through it, as where k is all of them.
        """
        k_out = self.config.k_out_at(self._k)
        return None if k_out is None else max(1, round(k_out))

    @property
    def pool(self) -> int | None:
        """Pathways that a block of tokens may choose from, shared ones included: of a range, its low end, or in
        training the number that was drawn (:func:`draw_pool`). None if pools are off.
        """
        size = self.config.pool
        if isinstance(size, list):
            return self.drawn_pool if self.training and self.drawn_pool is not None else size[0]
        return size

    def routes(self, x: Tensor) -> Routes:
        """Return the routes of inputs x [n, d]; with pools, of the tokens that the model's stack is reading."""
        assert isinstance(self.router, PathwayRouter | Follower)
        allow, size, read = None, self.pool, self.pool_pass
        if size is not None and read is not None:  # a module that runs alone is in a document's first block
            assert read.real.numel() == len(x), (read.real.shape, x.shape)
            allow = partial(read.allowed, self.place, size=size - self.config.n_shared)
        return self.router.route(x, self._k, allow)

    def summary(self) -> str:
        """Describe in one line how the module routes.

        >>> from slms.models.routed_mlp import RoutedMLP
        >>> RoutedMLP(8, 64, RoutingConfig(n_pathways=16, k=4), activation="gelu", layer_index=3).summary()
        '64 neurons in 16 pathways, the best 4 chosen by its mlp router, density 0.25'
        """
        config = self.config
        rule = RULES[config.rule]
        words = rule.words.format(**config.to_dict() | {"k": self._k})
        chosen = f"{words} chosen by its {'own gate' if config.router == 'gate' else f'{config.router} router'}"
        if isinstance(self.router, Follower):
            chosen = f"those that {self.router.group.place} chose"
        if self.k_out is not None:
            chosen += f" and of these {self.k_out} by their activations"
        density = f", density {self._k / config.n_pathways:.2g}" if rule.fixed or rule.held else ""
        if self.pool is not None and not isinstance(self.router, Follower):
            chosen += f" among {self.pool} of the document"
        return f"{self.offsets[-1]} {self.units} in {config.n_pathways} pathways, {chosen}{density}"


Kind = TypeVar("Kind", bound=Routed)


@overload
def routed_modules(model: nn.Module) -> dict[str, Routed]: ...
@overload
def routed_modules(model: nn.Module, kind: type[Kind]) -> dict[str, Kind]: ...
def routed_modules(model: nn.Module, kind: type[Routed] = Routed) -> dict[str, Any]:
    """Return the model's routed modules (of one kind) by place, in the order in which the model computes them."""
    found = {module.place: module for module in model.modules() if isinstance(module, kind)}
    return dict(sorted(found.items(), key=lambda item: parse_place(item[0])))


def set_k(model: nn.Module, k: int) -> None:
    """Make every routed module choose k pathways (of each of its groups) per token from now on."""
    for module in routed_modules(model).values():
        module.k = k * module.n_groups


def draw_pool(model: nn.Module, seed: int) -> None:
    """Draw, by a seed, the pool size of every routed module from the range of `routing.pool`, for training.

    It is one number for the whole model; a model with one size, or none, does not change.
    """
    for module in routed_modules(model).values():
        if isinstance(module.config.pool, list):
            low, high = module.config.pool
            module.drawn_pool = low + int(
                torch.randint(high - low + 1, (), generator=torch.Generator().manual_seed(seed))
            )


def set_ramp(model: nn.Module, share: float) -> None:
    """Set λ of every gate ``ramp`` or ``relu``: 0 makes it ``unit``, 1 ``sigmoid`` or the score. Others stay as is."""
    for module in routed_modules(model).values():
        if module.router.ramp is not None:
            module.router.ramp.fill_(share)


@contextmanager
def record_routes(model: nn.Module) -> Iterator[dict[str, Routes]]:
    """Yield a dict that every forward fills with {place: Routes}, with gradients.

    Tokens are flattened, n = b·t. A later forward overwrites an earlier one, so the dict does not grow and activations
    recomputed in the backward pass are not counted twice.
    """
    modules = routed_modules(model)
    routes: dict[str, Routes] = {}
    before = {place: module.recorder for place, module in modules.items()}

    def recorder(place: str) -> Callable[[Routes], None]:
        return lambda found: routes.__setitem__(place, found)

    for place, module in modules.items():
        module.recorder = recorder(place)
    try:
        yield routes
    finally:
        for place, module in modules.items():
            module.recorder = before[place]


Chooser = Callable[[Tensor, Routes], Tensor]
"""Maps a router's inputs [n, d] and its own routes to another choice, bool [n, p]."""


@contextmanager
def choose_by(model: nn.Module, choosers: Mapping[str, Chooser]) -> Iterator[None]:
    """Let other functions choose at these places; the gates follow from the routers' scores as before.

    Raises:
        ValueError: the gates are 0 wherever the router does not choose.
    """
    modules = routed_modules(model)
    if any(modules[place].config.gate == "relu" for place in choosers):
        raise ValueError("`routing.rule` is relu; its gates are 0 where it does not choose, so no other choice can run")
    routers = {place: modules[place].router for place in choosers}
    try:
        for place, router in routers.items():
            router.chooser = choosers[place]
        yield
    finally:
        for router in routers.values():
            router.chooser = None
