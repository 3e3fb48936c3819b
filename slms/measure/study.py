"""Compares a routed model with its controls over seeds, and decides by a rule whether it beats them.

The rule was written before any study was run:

1. Every arm (the routed model and each control, `slms.lit.controls`) is trained from one configuration with the same
   seeds; a seed sets the text's order, partition and routers, and dropout. An arm's number is the mean over its seeds
   of the loss in nats per token on the validation text, which is the same documents for every run.
2. Two arms are compared on the seeds that both have finished, paired by seed and document; the 95 % interval is over
   seeds and documents (`paired_over_seeds`).
3. `A beats B` needs at least three seeds and an interval of A − B that lies below 0. Everything else is `not shown`,
   which says that this study does not show a difference, not that there is none.
4. Each pair is judged by itself at 95 %: five controls without a true difference show at least one in 23 % of studies.

Speed does not enter the verdict. It is measured in turns with the dense base, on one model of each arm.

Shapes: s seeds, d documents.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.kernels.timing import time_together
from slms.measure.schema import Results
from slms.measure.speed import one_more_token, prefill
from slms.metrics.functional import Interval, paired_over_seeds
from slms.models.decode_step import speed_up

ROUTED = "routed"
FEWEST = 3
"""Seeds that a verdict needs."""
BEFORE, PROMPT = 64, 256
"""Tokens before the one that is timed, and of the prompt that is timed."""


class StudyRun(NamedTuple):
    """One finished run of a study."""

    arm: str
    seed: int
    run: str
    """its directory"""
    nats: float
    base_nats: float | None
    """of the untouched base on the same documents"""
    kl: float | None
    """KL(base ‖ model) in nats per token on the same documents, if the base taught the run"""
    steps: int
    tokens_trained: int
    seconds: float
    mlp_flops: float | None
    """per token, of all MLPs as they run"""
    mlp_share: float | None
    """the same over the dense MLPs'"""
    active_fraction: float | None
    """share of all MLP neurons that execute for a token"""
    decode_speedup: float | None
    """tokens a second over the dense base's, one token after a prompt; measured on one run of each arm"""
    prompt_speedup: float | None
    """the same of a prompt"""


class Documents(NamedTuple):
    """The losses of one run by document."""

    nats: list[float]
    tokens: list[int]


class Arm(NamedTuple):
    """One arm over its seeds."""

    arm: str
    seeds: list[int]
    nats: float
    """mean over seeds"""
    nats_sd: float | None
    """over seeds; null for one seed"""
    over_base: float | None
    """perplexity over the untouched base's"""
    kl: float | None
    """mean over seeds"""
    mlp_share: float | None
    active_fraction: float | None
    decode_speedup: float | None
    prompt_speedup: float | None
    minus_routed: float | None
    """nats − the routed arm's, on the seeds that both have; null of the routed arm"""
    low: float | None
    high: float | None
    verdict: str


class Speedups(NamedTuple):
    """A model's tokens a second over those of its dense base."""

    decode: float | None = None
    """one token after a prompt of `BEFORE` tokens"""
    prompt: float | None = None
    """a prompt of `PROMPT` tokens"""


def study_run(arm: str, seed: int, run: str, results: Results, speedups: Speedups) -> StudyRun:
    """One row of a study from a run's results."""
    compute, dense = results.compute, results.losses.dense
    return StudyRun(
        arm=arm,
        seed=seed,
        run=run,
        nats=results.losses.model.nats,
        base_nats=None if dense is None else dense.nats,
        kl=None if results.losses.kl is None else results.losses.kl.nats,
        steps=results.run.steps,
        tokens_trained=results.run.tokens_trained,
        seconds=results.run.seconds,
        mlp_flops=compute and compute.mlp_routed,
        mlp_share=compute and compute.mlp_routed / compute.mlp_dense,
        active_fraction=compute and compute.active_fraction,
        decode_speedup=speedups.decode,
        prompt_speedup=speedups.prompt,
    )


def documents_of(results: Results) -> Documents:
    """A run's losses by document; raises ValueError if its results file has none."""
    found = results.losses.by_document
    if found is None:
        raise ValueError(f"{results.run.name}: its results have no losses by document")
    return Documents(found.nats, found.tokens)


def arms_of(runs: Sequence[StudyRun], documents: Mapping[tuple[str, int], Documents]) -> list[Arm]:
    """Do steps 1 to 4 of the rule with the runs that are finished, in the order of their arms.

    Args:
        documents: the losses by document of every run, by arm and seed.

    Raises:
        ValueError: two runs were measured on different documents.
    """
    first = next(iter(documents.values()))
    for (arm, seed), other in documents.items():
        if other.tokens != first.tokens:
            raise ValueError(f"{arm}, seed {seed}: it was measured on other documents than the study's first run")
    of_arm: dict[str, list[StudyRun]] = {}
    for run in runs:
        of_arm.setdefault(run.arm, []).append(run)
    return [_arm(name, found, of_arm.get(ROUTED, []), documents) for name, found in of_arm.items()]


def _arm(
    name: str,
    runs: Sequence[StudyRun],
    routed: Sequence[StudyRun],
    documents: Mapping[tuple[str, int], Documents],
) -> Arm:
    shared = [run.seed for run in runs if run.seed in {other.seed for other in routed}]
    apart = None if name == ROUTED or not shared else _difference(name, shared, documents)
    nats, base = [run.nats for run in runs], [run.base_nats for run in runs]
    mean = statistics.fmean(nats)
    above = None if None in base else mean - statistics.fmean(x for x in base if x is not None)
    return Arm(
        arm=name,
        seeds=[run.seed for run in runs],
        nats=mean,
        nats_sd=statistics.stdev(nats) if len(nats) > 1 else None,
        over_base=above if above is None else math.exp(above),
        kl=_mean([run.kl for run in runs]),
        mlp_share=_mean([run.mlp_share for run in runs]),
        active_fraction=_mean([run.active_fraction for run in runs]),
        decode_speedup=_mean([run.decode_speedup for run in runs]),
        prompt_speedup=_mean([run.prompt_speedup for run in runs]),
        minus_routed=apart and apart.value,
        low=apart and apart.low,
        high=apart and apart.high,
        verdict="" if name == ROUTED else verdict(name, apart, len(shared)),
    )


def _difference(arm: str, seeds: Sequence[int], documents: Mapping[tuple[str, int], Documents]) -> Interval:
    def losses(name: str) -> Tensor:
        return torch.tensor([documents[name, seed].nats for seed in seeds], dtype=torch.float64)

    return paired_over_seeds(losses(arm), losses(ROUTED), torch.tensor(documents[arm, seeds[0]].tokens))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def verdict(arm: str, minus_routed: Interval | None, n_seeds: int) -> str:
    """Step 3 of the rule, in words.

    >>> verdict("dense", Interval(-0.01, -0.02, -0.005, 9), 3), verdict("static", Interval(0.01, 0.002, 0.02, 9), 3)
    ('dense beats routed', 'routed beats static')
    >>> verdict("dense", Interval(-0.01, -0.02, 0.001, 9), 3), verdict("dense", Interval(-0.01, -0.02, -0.005, 9), 2)
    ('not shown', 'not shown (2 seeds of 3)')
    """
    if minus_routed is None or n_seeds < FEWEST:
        return f"not shown ({n_seeds} seed{'s' * (n_seeds != 1)} of {FEWEST})"
    if minus_routed.high < 0:
        return f"{arm} beats {ROUTED}"
    return f"{ROUTED} beats {arm}" if minus_routed.low > 0 else "not shown"


@torch.inference_mode()
def measure_speedups(dense: PreTrainedModel, model: PreTrainedModel, seconds: float) -> Speedups:
    """Time a model beside its dense base on random tokens, for about `seconds`, half of them a prompt.

    Both run by the same engine, `speed_up` (in place). They are timed in turns; the times are 20th percentiles
    (`kernels.timing`).
    """
    for one in (dense, model):
        speed_up(one.eval())
    longest = getattr(dense.config, "max_position_embeddings", PROMPT)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(dense.config.vocab_size, (1, min(PROMPT, longest)), generator=generator).to(dense.device)

    def of(make: Callable[[PreTrainedModel], Callable[[], object]]) -> float:
        runs = {"dense": make(dense), "model": make(model)}
        times = time_together(runs, str(dense.device.type), seconds / 2)
        return times["dense"].p20 / times["model"].p20

    before = ids[:, : min(BEFORE, longest - 1)]
    return Speedups(of(lambda one: one_more_token(one, before)), of(lambda one: prefill(one, ids)))
