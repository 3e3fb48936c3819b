"""What a coder is worth, as `eval.py sae` prints and writes it: beside its baselines, in tables and plain values."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from slms.metrics.functional import Interval, Score
from slms.report.tables import interval, number, share, text_table
from slms.sae.quality import Quality

ABLATION_TELLS = 0.01
"""Nats: where ablating the site costs less, a share of that loss recovered is noise and is not shown."""
COLUMNS = ("coder", "figure", "value", "low", "high", "n")


def quality_table(results: Mapping[str, Quality]) -> str:
    """L0, FVU, share of the loss recovered from zero and mean ablation, KL and dead latents; one line a coder."""
    head = ["coder", "L0", "FVU", "95 % interval", "CE recovered", "95 % interval", "from mean", "KL", "dead"]
    rows = []
    for name, q in results.items():
        recovered = {way: q.recovered[way] if tells(q, way) else None for way in q.recovered}
        zero, mean = recovered["zero"], recovered["mean"]
        rows.append([
            name, number(q.l0.value, 1), number(q.fvu.value, 4), interval(q.fvu.low, q.fvu.high, 4),
            number(zero and zero.value, 4), interval(zero and zero.low, zero and zero.high, 4),
            number(mean and mean.value, 4), number(q.kl.value, 4), share(q.dead),
        ])  # fmt: skip
    return text_table(head, rows)


def tells(q: Quality, way: str) -> bool:
    """Whether ablating the site to "zero" or its "mean" costs enough for a share of it to mean something."""
    return q.ce_ablated[way].value - q.ce_clean.value >= ABLATION_TELLS


def specialization_table(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """SI of the latents in use against each family of classes, ± half its interval; one line a coder."""
    families = list(dict.fromkeys(family for found in scores.values() for family in found))
    rows = [[name, *(_half(found[family]) for family in families)] for name, found in scores.items()]
    return text_table(["SI of latents", *families], rows)


def _half(score: Score) -> str:
    measured = math.isfinite(score.value)
    return f"{number(score.value)} ± {number((score.high - score.low) / 2)}" if measured else number(None)


def plain_quality(q: Quality) -> dict[str, Any]:
    """Plain JSON types; of the density, its quantiles over latents."""
    out: dict[str, Any] = {}
    for name, value in q._asdict().items():
        if isinstance(value, dict):
            out[name] = {key: part._asdict() for key, part in value.items()}
        elif isinstance(value, Interval):
            out[name] = value._asdict()
        elif isinstance(value, torch.Tensor):
            shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
            quantiles = value.double().quantile(shares.to(value.device)).tolist()
            out[name] = dict(zip(("p5", "p25", "p50", "p75", "p95"), quantiles, strict=True))
        else:
            out[name] = value
    return out


def plain_score(score: Score) -> dict[str, Any]:
    """A family's specialization index; of the latents themselves, their median and the share beyond chance."""
    units, z = score.units[~score.units.isnan()], score.units_z[~score.units_z.isnan()]
    whole = {name: value for name, value in score._asdict().items() if name not in ("units", "units_z")}
    median = units.median().item() if len(units) else None
    return whole | {"latents_median": median, "latents_beyond_z3": (z > 3).double().mean().item() if len(z) else None}


def figure_rows(results: Mapping[str, Quality], scores: Mapping[str, Mapping[str, Score]]) -> Iterator[list[Any]]:
    """One row of `COLUMNS` a figure."""
    for coder, q in results.items():
        for name, value in plain_quality(q).items():
            parts = {name: value} if "value" in (value if isinstance(value, dict) else ()) else {}
            if name in ("recovered", "ce_ablated"):
                parts = {f"{name}_{way}": part for way, part in value.items()}
            for figure, part in parts.items():
                yield [coder, figure, part["value"], part["low"], part["high"], part["n"]]
        yield [coder, "dead", q.dead, None, None, q.l0.n]
        for family, score in scores.get(coder, {}).items():
            yield [coder, f"si_{family}", score.value, score.low, score.high, score.n]
