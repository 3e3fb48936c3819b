"""Count tables and scores of a layer as a results file holds them: plain numbers, class names, token texts.

Shapes: g document groups, p pathways, c classes.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from slms.measure.classes import GIVEN_TOKEN, TOKEN
from slms.measure.schema import Estimate, Layer, Pathway, Token
from slms.metrics.functional import Score, entropy, purity, purity_legacy, utilization
from slms.metrics.units import UnitCounts

TOP_TOKENS = 10  # as many as the sources list


def describe_layer(
    index: int,
    counted: UnitCounts,
    offsets: tuple[int, ...],
    texts: list[str],
    label_names: Mapping[str, tuple[str, ...]],
) -> Layer:
    """One routed layer.

    Args:
        counted: the layer's tables.
        offsets: P + 1 bounds of the pathways' neurons.
        texts: text of every class of the family `token`.
        label_names: family → class names.
    """
    choices, n = counted.uses.cpu().double(), int(counted.n_tokens)
    sizes = torch.tensor(offsets).diff().double()
    counts, totals = counted.tables(TOKEN)
    used, pure = utilization(counted.uses), purity(counts, totals, counted.joint(totals))
    legacy, uncertain = purity_legacy(counts), entropy(counts.sum(0))
    given = [family for family in label_names if family + GIVEN_TOKEN in counted.layout.families]
    return Layer(
        layer=index,
        n_pathways=counted.n_units,
        chosen_per_token=float(choices.sum() / n),
        density=float((choices / n * sizes).sum() / sizes.sum()),
        purity=estimate(pure),
        purity_legacy=Estimate(_weighted(legacy, choices), n=n),
        entropy=Estimate(_weighted(uncertain, choices), n=n),
        utilization=Estimate(used.share_used, n=n),
        effective_pathways=used.effective,
        max_violation=used.max_violation,
        si={family: estimate(counted.score(family)) for family in label_names},
        si_given_token={family: estimate(counted.score(family + GIVEN_TOKEN)) for family in given},
        pathways=_pathways(counted, (pure.units, legacy, uncertain), used.load, texts, label_names),
    )


def estimate(score: Score) -> Estimate:
    """A score without its units; what is NaN was not measurable and becomes None."""
    return Estimate(
        value=finite(score.value),
        low=finite(score.low),
        high=finite(score.high),
        n=score.n,
        null_mean=finite(score.null_mean),
        null_sd=finite(score.null_sd),
        z=finite(score.z),
        ceiling=finite(score.ceiling),
    )


def finite(value: float | Tensor) -> float | None:
    """The number, or None if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def _weighted(values: Tensor, weights: Tensor) -> float | None:
    """Mean over pathways with a value, each weighing by its choices."""
    values = values.cpu().double()
    known = values.isfinite()
    total = weights[known].sum()
    return float((values[known] * weights[known]).sum() / total) if total > 0 else None


def _pathways(
    counted: UnitCounts,
    columns: tuple[Tensor, Tensor, Tensor],
    load: Tensor,
    texts: list[str],
    label_names: Mapping[str, tuple[str, ...]],
) -> list[Pathway]:
    counts, totals = (table.sum(0).cpu().double() for table in counted.tables(TOKEN))
    profiles = {family: counted.tables(family)[0].sum(0).cpu().double() for family in label_names}
    return [
        Pathway(
            index=p,
            tokens=int(counted.uses[p]),
            load=float(load[p]),
            purity=finite(columns[0][p]),
            purity_legacy=finite(columns[1][p]),
            entropy=finite(columns[2][p]),
            top_tokens=_top_tokens(counts[p], totals, texts),
            profile={
                family: profile
                for family, names in label_names.items()
                if (profile := _profile(profiles[family][p], names))
            },
        )
        for p in range(counted.n_units)
    ]


def _top_tokens(counts: Tensor, totals: Tensor, texts: list[str]) -> list[Token]:
    """The tokens that contribute most to KL(p(t | pathway) ‖ p(t)): often here, and more often than elsewhere."""
    if counts.sum() == 0:
        return []
    here, everywhere = counts / counts.sum(), totals / totals.sum()
    lift = torch.where(counts > 0, here / everywhere.clamp(min=1e-300), 0.0)
    gain = torch.special.xlogy(here, lift)
    best = gain.argsort(descending=True, stable=True)[:TOP_TOKENS].tolist()
    return [Token(texts[i], int(counts[i]), float(lift[i])) for i in best if gain[i] > 0]


def _profile(counts: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """p(class | pathway) of the classes that occur, the commonest first."""
    total = counts.sum()
    order = counts.argsort(descending=True, stable=True).tolist()
    return {names[i]: float(counts[i] / total) for i in order if counts[i] > 0}
