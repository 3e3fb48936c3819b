"""The frontier of dynamic-k execution: what each rule costs in perplexity and saves in FLOPs and measured time."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from slms.metrics.functional import Interval

NEAR_DENSE = 1.01
"""Perplexity over the dense model's up to which a point counts as near the dense one's."""


class Speedup(NamedTuple):
    """One direction (a prompt, or one more token) of one point, beside the dense model in the same turns."""

    tokens_per_second: float
    dense_tokens_per_second: float
    model: float
    """times as fast as the dense model, head included"""
    mlp: float
    """the MLPs alone"""


class Point(NamedTuple):
    """One rule at one density."""

    subject: str
    """what runs under the rule: the dense model, or the routed one"""
    rule: str
    target: float | None
    """density asked for; None where a routed model ran as it is configured"""
    density: float
    """share of all MLP neurons executed, as measured"""
    loss: Interval
    """nats per token of the second half of each block"""
    ratio: Interval
    """perplexity over that of the dense model, interval over documents in pairs"""
    mlp_flops: float
    model_flops: float
    decode: Speedup | None
    prefill: Speedup | None
    densities: dict[str, float]
    """by place"""

    @property
    def name(self) -> str:
        """For a table or a legend."""
        return f"routed: {self.rule}" if self.subject == "routed" else self.rule


class Frontier(NamedTuple):
    """All points, and the dense model that they are compared with."""

    dense: Interval
    mlp_flops: float
    model_flops: float
    device: str
    points: list[Point]


def break_even(densities: Sequence[float], speedups: Sequence[float]) -> float | None:
    """The density at which a speedup falls to 1, between the measured ones by a straight line.

    None where it does not fall to 1 among them: slower throughout, faster throughout, or a single density.

    >>> break_even([0.25, 0.5, 1.0], [2.0, 1.2, 0.8])
    0.75
    """
    points = sorted(zip(densities, speedups, strict=True))
    for (low, fast), (high, slow) in reversed(list(itertools.pairwise(points))):
        if fast >= 1 > slow:
            return low + (fast - 1) / (fast - slow) * (high - low)
    return None


def break_evens(frontier: Frontier) -> dict[str, dict[str, float | None]]:
    """By rule, the break-even density of the MLPs in decode and in prefill."""
    found: dict[str, dict[str, float | None]] = {}
    for name, group in by_rule(frontier.points):
        found[name] = {}
        for direction in ("decode", "prefill"):
            timed = [(p.density, speed.mlp) for p in group if (speed := getattr(p, direction)) is not None]
            found[name][direction] = break_even(*zip(*timed, strict=True)) if timed else None
    return found


def by_rule(points: Iterable[Point]) -> list[tuple[str, list[Point]]]:
    """The points of each rule, by its name."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.name, []).append(point)
    return list(groups.items())


def best_point(frontier: Frontier) -> Point | None:
    """The fastest in decode, whole model, of the points that lose little at density < 1 and beat the dense model."""
    small = [p for p in frontier.points if p.density < 1 and p.ratio.value <= NEAR_DENSE]
    faster = [p for p in small if p.decode and p.decode.model > 1]
    return max(faster, key=lambda p: p.decode.model if p.decode else 0.0, default=None)
