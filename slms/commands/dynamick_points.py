"""The points of `eval.py dynamick`: rules and models, measured on one text and timed against the same dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.commands.subject import Subject, open_model
from slms.kernels.costs import machine
from slms.measure.dynamick import (
    WITHOUT_PAPER,
    Execution,
    costs_of,
    count_cost,
    measure_quality,
    set_routed_rule,
    share_out,
    shares_of,
    sizes_of,
    under_rule,
)
from slms.measure.frontier import AS_RUN, Cost, Frontier, Point, point_rows
from slms.measure.journal import Journal
from slms.measure.kernels import calibrate_kernels
from slms.measure.rows import Row
from slms.measure.speed import Pair, compare_speed
from slms.metrics.loss import DocumentLoss
from slms.metrics.states import restore
from slms.models.dynamic import LEVELS, force_rules, run_dense
from slms.models.routed import routed_modules
from slms.progress import Progress, progress
from slms.report.artifacts import write_csv
from slms.report.dynamick import POINT_COLUMNS, point_lines


def token_ids(subject: Subject) -> Tensor:
    """The subject's blocks as token ids [b, t]."""
    return torch.from_numpy(subject.blocks.input_ids.astype("int64"))


@dataclass
class Session:
    """Measures points on one text, each against the same dense model."""

    dense: PreTrainedModel
    subject: Subject
    calibration: Tensor
    settings: dict[str, Any]
    batch_size: int
    seconds: float
    calibrate: bool
    journal: Journal
    directory: Path
    points: list[Point] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.blocks, self.block_size = self.subject.blocks, self.subject.text["block_size"]
        self.budget_blocks = self.calibration[: max(1, self.settings["budget_tokens"] // self.block_size)]
        self.prompt = token_ids(self.subject)[:1, : self.block_size - 1].to(self.dense.device)
        self.cost = count_cost(self.dense, self.dense, {}, self.block_size)

    @cached_property
    def loss(self) -> DocumentLoss:
        """The loss of the dense model."""
        loss = DocumentLoss()
        restore(loss, self.journal.part("dense", lambda: self.quality(self.dense).loss.metric_state))
        return loss

    def quality(self, model: PreTrainedModel, as_executed: bool = False) -> Execution:
        return measure_quality(model, self.blocks, self.batch_size, as_executed)

    def frontier(self) -> Frontier:
        threads = torch.get_num_threads()
        device = machine(self.dense.device.type).split(" | ")[0]
        if self.dense.device.type == "cpu":
            device += f", {threads} thread{'s' if threads > 1 else ''}"
        return Frontier(Point("dense", "", None, self.rows(self.loss, self.cost, {}, {})), self.points, device)

    def rows(self, loss: DocumentLoss, cost: Cost, *more: Mapping[str, Any]) -> list[Row]:
        return point_rows(loss.compute(), loss.minus(self.loss), cost, self.cost, *more)

    def routed_points(self, model: PreTrainedModel, rules: list[str], densities: list[float] | None) -> None:
        self.prepare(model)
        own = next(iter(routed_modules(model).values())).config.rule
        targets: Sequence[float | None] = densities or [None]
        grid = [(name, target) for name in rules or [own] for target in targets]

        def under(name: str, target: float | None) -> PreTrainedModel:
            set_routed_rule(model, name, target, self.budget_blocks, self.batch_size)
            return model

        for name, target in progress(grid, "routed"):
            self.add("routed", name, target, partial(under, name, target))

    def dense_points(self, rule: str, targets: list[float]) -> None:
        @cache
        def ready() -> PreTrainedModel:
            model = under_rule(self.dense, rule, self.calibration, self.settings["centre"], self.settings["pathways"])
            force_rules(model, self.settings["execution"] == "rule")
            self.prepare(model)
            return model

        def budget() -> dict[str, list[float]]:
            with Progress(f"{rule}: budget", len(sizes_of(ready())) * (len(LEVELS) - 1)) as steps:
                return costs_of(ready(), self.budget_blocks, self.batch_size, steps.update)

        def under(target: float) -> PreTrainedModel:
            chosen = self.settings["budget"]
            by_loss = chosen == "loss" or (chosen == "published" and rule in WITHOUT_PAPER)
            costs = self.journal.part(f"{rule} budget", budget) if by_loss and min(targets) < 1 else None
            share_out(ready(), self.settings["budget"], target, costs)
            return ready()

        for target in progress(targets, rule):
            self.add("dense", rule, target, partial(under, target))

    def prepared(self, path: str) -> PreTrainedModel:
        """Another model, as it was trained."""
        model = open_model(path).model
        self.prepare(model)
        return model

    def add(
        self, subject: str, rule: str, target: float | None, model: Callable[[], PreTrainedModel], **settings: Any
    ) -> None:
        """Measure a rule, keep its points and print them; `model()` is called only if the journal has none.

        settings: what the points depend on beside what the journal knows.
        """
        points = self.journal.part(
            f"{subject} {rule} {'own' if target is None else format(target, 'g')}",
            lambda: self.measured(subject, rule, target, model()),
            **settings,
        )
        self.points += points
        write_csv(self.directory / "dynamick.csv", POINT_COLUMNS, point_lines(self.frontier()))
        for point in points:
            fast = f", decode {point.value('model_speedup', 'decode'):.2f}×" if point.timed else ""
            quality = f"density {point.value('density'):.3f}: perplexity ×{point.value('ratio'):.4f}"
            print(f"{point.label} at {quality}{fast}", flush=True)

    def measured(self, subject: str, rule: str, target: float | None, model: PreTrainedModel) -> list[Point]:
        """A rule's point; if it is timed and some MLPs run dense, its quality alone and what runs."""
        if not self.seconds:
            return [self.point(subject, rule, target, model, timed=False)]
        if not run_dense(model):
            return [self.point(subject, rule, target, model, timed=True)]
        return [self.point(of, rule, target, model, timed=of == AS_RUN) for of in (subject, AS_RUN)]

    def prepare(self, model: PreTrainedModel) -> None:
        """If asked to, time a routed model's kernels at one token, a prompt and a batch, and print what will run."""
        if self.calibrate and routed_modules(model):
            tokens = (1, self.prompt.shape[1], self.batch_size * self.block_size)
            for line in calibrate_kernels(model, tokens, model.dtype):
                print(line)

    def point(self, subject: str, rule: str, target: float | None, model: PreTrainedModel, timed: bool) -> Point:
        quality = self.quality(model, as_executed=timed)
        cost = count_cost(self.dense, model, quality.kept, self.block_size, as_executed=timed)
        speeds = {}
        if timed:
            speed = compare_speed(self.dense, model, self.prompt, self.seconds)
            speeds["decode"] = _speeds(speed.decode, speed.decode_mlps, 1)
            speeds["prefill"] = _speeds(speed.prefill, speed.prefill_mlps, self.prompt.shape[1])
        densities = shares_of(model, quality.kept)
        return Point(subject, rule, target, self.rows(quality.loss, cost, speeds, densities))


def _speeds(model: Pair, mlps: Pair, tokens: int) -> dict[str, float]:
    rates = {"tokens_per_second": model.other, "dense_tokens_per_second": model.dense}
    found = {metric: 1e6 * tokens / spread.p20 for metric, spread in rates.items()}
    return found | {"mlp_speedup": mlps.speedup, "model_speedup": model.speedup}
