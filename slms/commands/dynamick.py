"""`eval.py dynamick`: what executing a share of the MLPs costs in quality and brings in speed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.commands.arguments import parse_densities, published
from slms.commands.subject import Subject, open_model, open_subject, results_of, run_base, short_name, with_text
from slms.kernels.costs import machine
from slms.measure.dynamick import (
    BUDGETS,
    DENSE_RULES,
    EXECUTIONS,
    ROUTED_RULES,
    WITHOUT_PAPER,
    Execution,
    costs_of,
    count_cost,
    measure_quality,
    pathways_of,
    set_routed_rule,
    share_out,
    shares_of,
    sizes_of,
    suitable,
    under_rule,
)
from slms.measure.frontier import AS_RUN, BESIDE, Cost, Frontier, Point, point_rows
from slms.measure.gguf import time_models
from slms.measure.journal import Journal, identity
from slms.measure.kernels import KernelOptions, calibrate_kernels
from slms.measure.rows import Row
from slms.measure.speed import Pair, compare_speed
from slms.metrics.loss import DocumentLoss
from slms.metrics.states import restore
from slms.models.base import Base, load_base
from slms.models.dynamic import LEVELS, force_rules, run_dense
from slms.models.routed import routed_modules
from slms.models.routed_mlp import check_only_mlps
from slms.progress import Progress, progress
from slms.report.artifacts import write_csv, write_json
from slms.report.dynamick import (
    POINT_COLUMNS,
    closing_line,
    frontier_json,
    frontier_table,
    llama_cpp_json,
    llama_cpp_lines,
    point_lines,
)
from slms.report.frontier_figure import frontier_figure
from slms.report.palette import write_figure
from slms.report.provenance import command_line, hardware, versions

AS_ESTIMATED = KernelOptions()


@published(k="density")
def dynamick(
    model: str = "stories-1m",
    density: list[str] | None = None,
    rule: list[str] | None = None,
    dense: str | None = None,
    beside: list[str] | None = None,
    budget: str = "published",
    centre: bool = False,
    execution: str = "fastest",
    n_tokens: int = 32_768,
    calibration_tokens: int = 8192,
    budget_tokens: int = 4096,
    batch_size: int = 16,
    seconds: float = 1.0,
    kernels: KernelOptions = AS_ESTIMATED,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Perplexity, FLOPs and measured speed when a share of the MLPs is executed, rule by rule, against the dense model.

    Perplexity is measured on the second half of every block; the first half is its prompt, which is dense under the
    rules that run prompts dense, as in the timing. Each point is kept as soon as it is measured; if the command is
    killed, give it again and it continues with the next point.

    Args:
        model: a dense model, to which rules apply without training, or a routed one (a run directory).
        density: the share of neurons to execute: one (0.35), several (0.35 0.5), or a sweep (0.1:1.0:0.1). For a
            routed model it counts its routed layers, by default at their trained density; the default for a dense
            model is 0.35 0.5. Published scripts call this option `--k`, which also works.
        rule: one or several rules. For a dense model: oracle, cett, teal, wina, cats, low_rank, griffin, static,
            router; by default all that suit it. For a routed model: top_k, top_p, threshold, controlled; by default
            its own, and then every dense rule that suits is measured too, on `dense`, at the densities that the routed
            model executed.
        dense: the dense model to compare a routed one with; by default the base of its run.
        beside: other models of the same vocabulary, routed, cut out or dense: each is a point as it was trained.
        budget: how a dense model shares the density out: published (as each rule's paper: teal and wina greedily among
            the matrices of an MLP, cett by one CETT for all layers, cats and griffin uniformly, the rules of no paper
            by loss), uniform, or loss (among layers, greedily by measured loss).
        centre: let what a rule skips leave its calibrated mean. The papers of these rules do not do this.
        execution: how a rule on a dense model decodes: fastest (an MLP runs dense where its rule was measured slower;
            then one row has the rule's quality alone, and one, "as run", all of what runs), or rule (everywhere).
        n_tokens: tokens of the split to measure on; calibration always uses the training split.
        calibration_tokens: training tokens that calibrate thresholds, predictors and routers.
        budget_tokens: how many of those tokens measure, layer by layer, what a density costs.
        batch_size: blocks in one forward pass.
        seconds: how long to time each point; 0 skips the timing.
        kernels: --kernels.calibrate first times the backends of routed MLPs at this model's shapes and keeps the
            table; by default, backends are chosen by estimate on a machine that has no table.
        output_dir: dynamick.csv, dynamick.json, frontier.png and .svg go to OUTPUT_DIR/dynamick/NAME/TEXT/.
    """
    densities = None if density is None else parse_densities(density)
    for option, value, known in (("budget", budget, BUDGETS), ("execution", execution, EXECUTIONS)):
        if value not in known:
            raise ValueError(f"--{option} {value}: it must be one of {', '.join(known)}")
    _named(rule, (*DENSE_RULES, *ROUTED_RULES), "it")  # before model and text are read
    subject = open_subject(model, n_tokens=n_tokens, **text)
    check_only_mlps(subject.model, f"dynamick --model {model}")
    base_of = Base(subject.model, subject.tokenizer)
    calibration = token_ids(with_text(model, base_of, subject.text, split="train", n_tokens=calibration_tokens))
    routed = subject.model if routed_modules(subject.model) else None
    base = subject.model if routed is None else dense_of(model, dense)
    others = {name: (path, checked_beside(path, base)) for name, path in named_models(beside or []).items()}
    settings = {"calibration_tokens": calibration.numel(), "budget": budget, "budget_tokens": budget_tokens}
    settings |= {"centre": centre, "pathways": pathways_of(routed), "execution": execution}
    options = settings | {"batch_size": batch_size, "seconds": seconds, "hardware": hardware(base.device)}
    options |= {"dense": identity(base)}
    asked = {"rule": rule, "density": densities} | ({"beside": [*others.values()]} if others else {})
    directory, journal = results_of(subject, output_dir, "dynamick", **options, **asked)
    journal.made_from |= options
    session = _Session(base, subject, calibration, settings, batch_size, seconds, kernels.calibrate, journal, directory)
    if routed is not None:
        session.routed_points(routed, _named(rule, ROUTED_RULES), densities)
    if routed is None or rule is None:
        rules = _named(rule, DENSE_RULES) or suitable(base)
        targets = densities or [0.35, 0.5]
        if routed is not None:
            targets = sorted({round(point.value("density"), 4) for point in session.points})
        for name in rules:
            session.dense_points(name, targets)
    for name, (path, weights) in progress(list(others.items()), "beside"):
        session.add(BESIDE, name, None, partial(session.prepared, path), weights=weights)
    frontier = session.frontier()
    models = {"dense": base} | ({} if routed is None else {"routed": open_model(model).model})  # as trained
    timed = time_models(models, subject.tokenizer, session.prompt.shape[1]) if seconds else []
    compared = dense or (str(run_base(model)) if routed is not None else model)
    about = {"model": model, "dense": compared, **subject.text, **settings, "command": command_line()}
    about |= {"hardware": hardware(base.device), "versions": versions(), "llama_cpp": llama_cpp_json(timed)}
    write_json(directory / "dynamick.json", about | frontier_json(frontier))
    write_figure(directory / "frontier.png", frontier_figure(frontier, f"{short_name(model)}: what skipping costs"))
    print(f"{model} on {subject.source}, {frontier.dense.row('nats').n:,} tokens: {frontier_table(frontier)}")
    if timed:
        print(f"\n{llama_cpp_lines(timed)}")
    print(f"\nwritten to {directory}\n{closing_line(frontier)}")


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Give each model a name by which a reader knows it: its run's, with the time of the run if names repeat."""
    short = [short_name(model) for model in models]
    names = [f"{name}/{Path(m).name}" if short.count(name) > 1 else name for name, m in zip(short, models, strict=True)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--beside: {' and '.join(sorted(twice))} must each be given once")
    return dict(zip(names, models, strict=True))


def checked_beside(path: str, dense: PreTrainedModel) -> dict[str, Any]:
    """The identity of a model that can stand beside `dense`; raises ValueError if it cannot."""
    model = open_model(path).model
    check_only_mlps(model, f"dynamick --beside {path}")
    if model.config.vocab_size != dense.config.vocab_size:
        raise ValueError(
            f"--beside {path}: its vocabulary has {model.config.vocab_size} tokens; the dense model's has "
            f"{dense.config.vocab_size}"
        )
    return identity(model)


def _named(rule: Sequence[str] | None, known: Collection[str], what: str = "on this model it") -> list[str]:
    for name in rule or ():
        if name not in known:
            raise ValueError(f"--rule {name}: {what} must be one of {', '.join(dict.fromkeys(known))}")
    return list(rule or ())


def token_ids(subject: Subject) -> Tensor:
    """The subject's blocks as token ids [b, t]."""
    return torch.from_numpy(subject.blocks.input_ids.astype("int64"))


def dense_of(model: str, dense: str | None) -> PreTrainedModel:
    """The dense model that a routed one is compared with."""
    if dense is not None:
        found = open_model(dense).model
    elif (base := run_base(model)) is not None:
        found = load_base(base).model.eval()
    else:
        raise ValueError(f"--model {model}: a routed model, and no run that names its base; give --dense")
    if routed_modules(found):
        raise ValueError(f"--dense {dense}: this model is routed too")
    return found


@dataclass
class _Session:
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
