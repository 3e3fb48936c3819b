"""Measures how good sparse coders are, in one pass over text for all of them, and gives their numbers as rows.

Shapes: n tokens, i width of a site, s latents.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slms.data.text import Blocks
from slms.measure.classes import TextClasses
from slms.measure.journal import Journal
from slms.measure.passes import batches
from slms.measure.rows import Row, row_of
from slms.metrics.functional import Score
from slms.metrics.functional.score import share_beyond_chance
from slms.metrics.units import UnitCounts, Uses
from slms.models.pair import Models
from slms.sae.baselines import PCA, FixedCoder
from slms.sae.evaluate import AtSource, update_qualities
from slms.sae.quality import CoderQuality, Quality
from slms.sae.training_coder import TrainingCoder

QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


class CoderNumbers(NamedTuple):
    """The numbers of one coder."""

    quality: Quality
    si: dict[str, Score]
    """specialization of its latents by label family; empty for PCA, which has no latents, and at one of several
    sites"""


@torch.no_grad()
def measure_coders(
    model: Models,
    blocks: Blocks,
    coders: Mapping[str, FixedCoder | TrainingCoder | PCA | AtSource],
    special: Tensor,
    batch_size: int,
    journal: Journal | None = None,
) -> dict[str, CoderNumbers]:
    """Measure each coder's quality and, if it has latents, their SI by label family, over the whole text.

    Args:
        coders: coders by name, each at its place in the model.
        special: ids of tokens that coders leave alone.
        journal: journal of this model, these blocks and coders, from which a killed pass continues.
    """
    classes = TextClasses(blocks)
    widths = {name: _width(coder) for name, coder in coders.items()}
    qualities = {name: CoderQuality(len(coder.mean), widths[name]) for name, coder in coders.items()}
    counts = {
        name: UnitCounts(classes.layout, widths[name], together=True)
        for name, coder in coders.items()
        if not isinstance(coder, PCA | AtSource)
    }
    sums = [*qualities.values(), *counts.values()]
    name, read = f"pass of {', '.join(coders)}", batches(blocks, batch_size)
    for batch in (journal or Journal()).through(name, read, sums, "measuring"):
        used = update_qualities(model, batch, list(coders.values()), special, list(qualities.values()), full=True)
        for name, one in zip(coders, used, strict=True):
            if name in counts:
                on = one.values > 0
                tokens = one.rows.nonzero()[:, 0][one.picks.rows[on]]
                counts[name].update(Uses(tokens, one.picks.indices[on]), classes.cells(batch, one.rows))
    return {
        name: CoderNumbers(quality.compute(), counts[name].compute() if name in counts else {})
        for name, quality in qualities.items()
    }


def _width(coder: Any) -> int:
    whole: Any = coder.whole if isinstance(coder, AtSource) else coder
    return whole.k if isinstance(whole, PCA) else whole.coder.d_sae


def coder_rows(found: Mapping[str, CoderNumbers]) -> list[Row]:
    """Rows of every number of every coder, whose name is the place."""
    rows = []
    for name, (quality, si) in found.items():
        for metric, value in quality._asdict().items():
            if metric != "density":
                several = value if isinstance(value, dict) else {"": value}
                rows += [row_of(name, metric, way, number, quality.l0.n) for way, number in several.items()]
        rows += [row_of(name, "si", family, score) for family, score in si.items()]
        rows += [
            row_of(name, "si_units", family, share_beyond_chance(score.units_z), score.n)
            for family, score in si.items()
        ]
    return rows


def density_quantiles(quality: Quality) -> dict[str, float]:
    """Quantiles, over the latents, of the share of tokens that use each."""
    shares = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
    values = quality.density.double().quantile(shares.to(quality.density.device)).tolist()
    return dict(zip(QUANTILES, values, strict=True))
