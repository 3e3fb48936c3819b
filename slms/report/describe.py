"""Count tables and scores of a layer as a results file holds them: plain numbers, class names, token texts.

Shapes: g document groups, p pathways, c classes.
"""

import math
from typing import cast

import torch
from torch import Tensor

from slms.data.text import Blocks
from slms.measure.schema import Estimate, Labels, Layer, Pathway, Token
from slms.metrics.functional import Score
from slms.metrics.pathways import FamilyScores, LayerScores, PathwayCounts

TOP_TOKENS = 10  # as many as the sources list
TOKEN = "token"  # the family of token ids, beside the label families


def describe_layer(
    index: int,
    metric: PathwayCounts,
    scores: LayerScores,
    offsets: tuple[int, ...],
    texts: list[str],
    label_names: dict[str, tuple[str, ...]],
) -> Layer:
    """One routed layer.

    Args:
        metric: the layer's tables, whose `compute` gave `scores`.
        offsets: P + 1 bounds of the pathways' neurons.
        texts: text of every class of the family `token`.
        label_names: family → class names.
    """
    choices, n = cast(Tensor, metric.together).diagonal().cpu().double(), int(cast(Tensor, metric.n_tokens))
    sizes = torch.tensor(offsets).diff().double()
    tokens = scores.families[TOKEN]
    used = scores.utilization
    return Layer(
        layer=index,
        n_pathways=metric.n_pathways,
        chosen_per_token=float(choices.sum() / n),
        density=float((choices / n * sizes).sum() / sizes.sum()),
        purity=estimate(tokens.purity),
        purity_legacy=Estimate(_weighted(tokens.purity_legacy, choices), n=n),
        entropy=Estimate(_weighted(tokens.entropy, choices), n=n),
        utilization=Estimate(used.share_used, n=n),
        effective_pathways=used.effective,
        max_violation=used.max_violation,
        si={family: estimate(scores.families[family].specialization) for family in label_names},
        si_given_token={
            family: estimate(given) for family in label_names if (given := scores.families[family].given_token)
        },
        pathways=_pathways(metric, tokens, choices, used.load, texts, label_names),
    )


def describe_labels(blocks: Blocks) -> dict[str, Labels]:
    """Coverage and class shares of every label family."""
    described = {}
    for family, names in blocks.label_names.items():
        classes = torch.from_numpy(blocks.labels[family].astype("int64")).flatten()
        counts = torch.bincount(classes[classes >= 0], minlength=len(names)).double()
        share = counts / counts.sum().clamp(min=1)
        described[family] = Labels(float((classes >= 0).double().mean()), dict(zip(names, share.tolist(), strict=True)))
    return described


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
    metric: PathwayCounts,
    tokens: FamilyScores,
    choices: Tensor,
    load: Tensor,
    texts: list[str],
    label_names: dict[str, tuple[str, ...]],
) -> list[Pathway]:
    counts, totals = (table.sum(0).cpu().double() for table in metric.tables(TOKEN))
    profiles = {family: metric.tables(family)[0].sum(0).cpu().double() for family in label_names}
    return [
        Pathway(
            index=p,
            tokens=int(choices[p]),
            load=float(load[p]),
            purity=finite(tokens.purity.units[p]),
            purity_legacy=finite(tokens.purity_legacy[p]),
            entropy=finite(tokens.entropy[p]),
            top_tokens=_top_tokens(counts[p], totals, texts),
            profile={
                family: profile
                for family, names in label_names.items()
                if (profile := _profile(profiles[family][p], names))
            },
        )
        for p in range(metric.n_pathways)
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
