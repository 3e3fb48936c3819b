"""`eval.py dynamick`: what executing a share of the MLPs costs in quality and brings in speed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from slms.commands.arguments import parse_densities, published
from slms.commands.dynamick_points import Session, token_ids
from slms.commands.subject import open_model, open_subject, results_of, run_base, short_name, with_text
from slms.measure.dynamick import (
    BUDGETS,
    DENSE_RULES,
    EXECUTIONS,
    ROUTED_RULES,
    pathways_of,
    suitable,
)
from slms.measure.frontier import BESIDE
from slms.measure.gguf import time_models
from slms.measure.journal import identity
from slms.measure.kernels import KernelOptions
from slms.models.base import Base, load_base
from slms.models.routed import routed_modules
from slms.models.routed_mlp import check_only_mlps
from slms.progress import progress
from slms.report.artifacts import write_json
from slms.report.dynamick import (
    closing_line,
    frontier_json,
    frontier_table,
    llama_cpp_json,
    llama_cpp_lines,
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
    routed = subject.model if routed_modules(subject.model) else None
    if dense is not None and routed is None:
        raise ValueError(
            f"--dense {dense}: --model {model} is not routed; only a routed model is compared with another"
        )
    base_of = Base(subject.model, subject.tokenizer)
    calibration = token_ids(with_text(model, base_of, subject.text, split="train", n_tokens=calibration_tokens))
    base = subject.model if routed is None else dense_of(model, dense)
    others = {name: (path, checked_beside(path, base)) for name, path in named_models(beside or []).items()}
    settings = {"calibration_tokens": calibration.numel(), "budget": budget, "budget_tokens": budget_tokens}
    settings |= {"centre": centre, "pathways": pathways_of(routed), "execution": execution}
    options = settings | {"batch_size": batch_size, "seconds": seconds, "hardware": hardware(base.device)}
    options |= {"dense": identity(base)}
    asked = {"rule": rule, "density": densities} | ({"beside": [*others.values()]} if others else {})
    directory, journal = results_of(subject, output_dir, "dynamick", **options, **asked)
    journal.made_from |= options
    session = Session(base, subject, calibration, settings, batch_size, seconds, kernels.calibrate, journal, directory)
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
