"""The frontier of dynamic-k execution: what each rule costs in perplexity and saves in FLOPs and measured time."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from slms.measure.rows import MODEL, Row, row_of
from slms.metrics.functional import Interval

DECODE, PREFILL = DIRECTIONS = ("decode", "prefill")  # families of speeds: one more token, a prompt
NEAR_DENSE = 1.01
"""The highest ratio of a point's perplexity to the dense model's that counts as near it."""


class Cost(NamedTuple):
    """FLOPs per token: of one more token, and of a prompt, which some rules run dense."""

    density: float
    """share of all MLP neurons executed"""
    mlp_flops: float
    """FLOPs of the MLPs, with the routers, predictors and dense parts of a rule"""
    model_flops: float
    """FLOPs of the whole model, with its head"""
    prompt_mlp_flops: float
    """FLOPs of the MLPs for a token of a prompt"""
    prompt_model_flops: float
    """FLOPs of the whole model for a token of a prompt"""


BESIDE = "beside"
"""The subject of a point that is another trained model; its rule is the model's name."""

AS_RUN = "as run"
"""The subject of a point that runs some MLPs dense because the rule is slower there; its quality is that of the mix."""


class Point(NamedTuple):
    """One rule at one density, or the dense model itself."""

    subject: str
    """which model runs under the rule: the dense one, the same `AS_RUN`, the routed one, or one `BESIDE` them"""
    rule: str
    """name of the rule, or of a model `BESIDE`; empty for the dense model itself"""
    target: float | None
    """density asked for; None if a routed model ran as configured"""
    rows: list[Row]
    """the numbers of the point, from `point_rows`"""

    @property
    def name(self) -> str:
        """The name of the point's rule in a legend."""
        return f"routed: {self.rule}" if self.subject == "routed" else self.rule or "dense"

    @property
    def label(self) -> str:
        """The name of the point in a table."""
        return f"{self.name}, {AS_RUN}" if self.subject == AS_RUN else self.name

    def row(self, metric: str, family: str = "") -> Row:
        """A number of the whole model; its row has no value if it was not measured."""
        blank = Row(MODEL, metric, family)
        return next((row for row in self.rows if row.key == blank.key), blank)

    def value(self, metric: str, family: str = "") -> float:
        """The same number as a float; NaN if it was not measured."""
        value = self.row(metric, family).value
        return math.nan if value is None else value

    @property
    def timed(self) -> bool:
        """Whether its speed was measured."""
        return self.row("model_speedup", "decode").value is not None


def point_rows(
    loss: Interval,
    difference: Interval,
    cost: Cost,
    dense: Cost,
    speeds: Mapping[str, Mapping[str, float]],
    densities: Mapping[str, float],
) -> list[Row]:
    """The numbers of a point (`METRICS` says what they are), then the density of each place.

    FLOPs are of one more token; those of the family `prefill` are of a token of a prompt.
    `difference` is to the dense model's loss; `speeds` has metrics of `decode` and `prefill`, if they were timed.
    """
    numbers = {
        "nats": loss,
        "perplexity": _exp(loss),
        "ratio": _exp(difference),
        "density": cost.density,
    }
    rows = [row_of(MODEL, metric, "", number, loss.n) for metric, number in numbers.items()]
    flops = {"": (cost.mlp_flops, cost.model_flops), PREFILL: (cost.prompt_mlp_flops, cost.prompt_model_flops)}
    for family, (mlp, model) in flops.items():
        shares = {"mlp_share": mlp / dense.mlp_flops, "model_share": model / dense.model_flops}
        counts = {"mlp_flops": mlp, "model_flops": model} | shares
        rows += [row_of(MODEL, metric, family, number, loss.n) for metric, number in counts.items()]
    for direction, speed in speeds.items():
        rows += [row_of(MODEL, metric, direction, number) for metric, number in speed.items()]
    return rows + [row_of(place, "density", "", density, loss.n) for place, density in densities.items()]


def _exp(nats: Interval) -> Interval:
    return Interval(math.exp(nats.value), math.exp(nats.low), math.exp(nats.high), nats.n)


class Frontier(NamedTuple):
    """All points, and the dense model with which they are compared."""

    dense: Point
    points: list[Point]
    device: str


def break_even(densities: Sequence[float], speedups: Sequence[float]) -> float | None:
    """The density at which a speedup falls to 1, by a straight line between the measured densities.

    None if it does not fall to 1 among them: always slower, always faster, or only one density.

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
    for name, group in of_rules(frontier):
        found[name] = {}
        for direction in DIRECTIONS:
            timed = [(p.value("density"), p.value("mlp_speedup", direction)) for p in under_rule_alone(group)]
            found[name][direction] = break_even(*zip(*timed, strict=True)) if timed else None
    return found


def under_rule_alone(points: Iterable[Point]) -> list[Point]:
    """The timed points at which every MLP ran under its rule."""
    return [p for p in points if p.timed and p.subject != AS_RUN]


def dense_places(point: Point) -> list[str]:
    """The places that ran dense at a point."""
    rows = [row for row in point.rows if row.metric == "density" and row.place != MODEL]
    return [row.place for row in rows if row.value == 1]


def by_rule(points: Iterable[Point]) -> list[tuple[str, list[Point]]]:
    """The points of each rule, with the rule's name."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.name, []).append(point)
    return list(groups.items())


def unbeaten(frontier: Frontier, direction: str) -> list[Point]:
    """The points, slowest first, that no other beats or equals both in perplexity and in measured speed."""
    points = [frontier.dense, *(p for p in frontier.points if p.timed)]

    def key(p: Point) -> tuple[float, float]:
        return (1.0, 1.0) if p is frontier.dense else (p.value("model_speedup", direction), p.value("ratio"))

    found: list[Point] = []
    for p in sorted(points, key=lambda p: (-key(p)[0], key(p)[1])):
        if not found or key(p)[1] < key(found[-1])[1]:
            found.append(p)
    return found[::-1]


def of_rules(frontier: Frontier) -> list[tuple[str, list[Point]]]:
    """The points of each rule, without the models beside them, which have one density."""
    return by_rule(p for p in frontier.points if p.subject != BESIDE)


def best_point(frontier: Frontier) -> Point | None:
    """The point that decodes fastest (whole model) of those at density < 1 that lose little and beat the dense one."""
    small = [p for p in frontier.points if p.value("density") < 1 and p.value("ratio") <= NEAR_DENSE]
    faster = [p for p in small if p.value("model_speedup", "decode") > 1]
    return max(faster, key=lambda p: p.value("model_speedup", "decode"), default=None)
