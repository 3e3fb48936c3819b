"""Finds the groups of layers that share a router, and begins and ends them with each pass of their model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from slms.routing import Group, PathwayRouter


class Passes:
    """Hooks of a model's stack that begin and end its groups with each forward pass."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups

    def begin(self, *_: Any) -> None:
        for group in self.groups:
            group.begin()

    def end(self, *_: Any) -> None:
        for group in self.groups:
            group.end()


def watch(stack: nn.Module) -> None:
    """Begin and end the groups of a model's stack with each of its forward passes."""
    passes = Passes(groups_of(stack))
    stack.register_forward_pre_hook(passes.begin)
    stack.register_forward_hook(passes.end)


def groups_of(model: nn.Module) -> list[Group]:
    """The groups of layers of a model that share a router."""
    routers = [module for module in model.modules() if isinstance(module, PathwayRouter)]
    return [router.group for router in routers if router.group is not None]


@contextmanager
def one_pass(groups: Sequence[Group]) -> Iterator[None]:
    """Let layers run without their model: those that follow execute what their leader chose inside this context."""
    passes = Passes(groups)
    passes.begin()
    try:
        yield
    finally:
        passes.end()
