"""Makes the tables that `eval.py sae` prints: how good a coder is, beside its baselines."""

import math
from collections.abc import Mapping

from slms.metrics.functional import Score
from slms.report.tables import interval, number, share, text_table
from slms.sae.quality import Quality

ABLATION_TELLS = 0.01
"""Nats. If ablating the site costs less, the share of that loss recovered is noise and is not shown."""


def quality_table(results: Mapping[str, Quality]) -> str:
    """A line per coder: L0, FVU, shares of the loss recovered from zero and mean ablation, KL and dead latents."""
    head = ["coder", "L0", "FVU", "95 % interval", "CE recovered", "95 % interval", "from mean", "KL", "dead"]
    rows = []
    for name, q in results.items():
        recovered = {way: q.recovered[way] if tells(q, way) else None for way in q.recovered}
        zero, mean = recovered["zero"], recovered["mean"]
        fvu = number(q.fvu.value, 4), interval(q.fvu.low, q.fvu.high, 4)
        from_zero = number(zero and zero.value, 4), interval(zero and zero.low, zero and zero.high, 4)
        from_mean, kl = number(mean and mean.value, 4), number(q.kl.value, 4)
        rows.append([name, number(q.l0.value, 1), *fvu, *from_zero, from_mean, kl, share(q.dead)])
    return text_table(head, rows)


def tells(q: Quality, way: str) -> bool:
    """Whether ablating the site to "zero" or its "mean" costs enough loss for a share of it to mean something."""
    return q.ce_ablated[way].value - q.ce_clean.value >= ABLATION_TELLS


def si_table(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """A line per coder: SI of its latents in use against each label family, ± half its interval."""
    families = list(dict.fromkeys(family for found in scores.values() for family in found))
    rows = [[name, *(_half(found[family]) for family in families)] for name, found in scores.items()]
    return text_table(["SI of latents", *families], rows)


def _half(score: Score) -> str:
    measured = math.isfinite(score.value)
    return f"{number(score.value)} ± {number((score.high - score.low) / 2)}" if measured else number(None)
