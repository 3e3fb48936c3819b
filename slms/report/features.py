"""Turns what was measured of a coder's latents into the content of `features.json`.

Shapes: s latents, c classes, k shown.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from slms.data.text import Blocks
from slms.measure.attribution import LayerAttribution
from slms.measure.classes import distinctive, divergence_terms, labels_of, preferred_classes, token_texts
from slms.measure.feature_graph import Graph
from slms.measure.features import BINS_AN_OCTAVE, OCTAVES, Context, LatentStatistics, z_bound
from slms.measure.logit_effects import Effects
from slms.measure.rows import finite, row_of
from slms.metrics.functional import Score
from slms.report.attribution import describe_pathway_parts
from slms.report.feature_schema import (
    CoActivationGraph,
    Community,
    Feature,
    FeatureFamily,
    LogitEffect,
    Neighbour,
    Preference,
    UseContext,
    Writer,
)

COMMUNITY_TOKENS = 8
ONLY = 0.9  # share of a decoder's norm from which on a feature counts as written in one place only


class Vocabulary:
    """Maps token ids to indices into the list of the ids that occur."""

    def __init__(self) -> None:
        self.ids: dict[int, int] = {}

    def __call__(self, token_id: int) -> int:
        """The index of an id, new or known."""
        return self.ids.setdefault(int(token_id), len(self.ids))

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The texts of the ids. Half a character, which UTF-8 cannot hold and browsers stumble over, is escaped."""
        return [text.encode("utf-8", "backslashreplace").decode() for text in token_texts(tokenizer, list(self.ids))]


def describe_writers(features: list[Feature], owners: Mapping[str, str]) -> list[Writer]:
    """Describe how far features write to one site, or one model, only.

    Args:
        features: the features of a crosscoder, with their shares by site.
        owners: site → the name that its share counts for: its model's, or its own.
    """
    described = []
    for name in dict.fromkeys(owners.values()):
        shares = {f.index: sum(f.sources[s] for s in owners if owners[s] == name) for f in features if f.uses}
        bins = Counter(min(int(10 * share), 9) for share in shares.values())
        only = sorted((features[i] for i, share in shares.items() if share >= ONLY), key=lambda f: -f.uses)
        described.append(Writer(name, [bins[i] for i in range(10)], len(only), [f.index for f in only[:20]]))
    return described


def describe_graph(graph: Graph, features: list[Feature]) -> CoActivationGraph:
    """Describe the graph in numbers, and each community by the tokens that distinguish it from the others."""
    found = graph.found
    overall = _peaks(features)
    described = []
    for index in range(int(found.communities.max()) + 1):
        members = [features[i] for i in graph.latents[found.communities == index].tolist()]
        if len(members) > 1:
            here = _peaks(members)
            described.append(
                Community(index, len(members), sum(f.uses for f in members), _distinctive_tokens(here, overall))
            )
    return CoActivationGraph(
        q=found.q,
        low=finite(found.low),
        high=finite(found.high),
        null_mean=found.null_mean,
        null_sd=found.null_sd,
        z=finite(found.z),
        stability=found.stability,
        tokens=found.n,
        features=len(graph.latents),
        communities=described,
    )


def _peaks(features: list[Feature]) -> Counter[int]:
    return Counter(context.tokens[context.peak] for feature in features for context in feature.strongest)


def _distinctive_tokens(here: Counter[int], overall: Counter[int]) -> list[int]:
    tokens = list(overall)
    counts, totals = torch.tensor([[counter[t] for t in tokens] for counter in (here, overall)], dtype=torch.float64)
    return [tokens[i] for i in distinctive(counts, totals, COMMUNITY_TOKENS)]


def describe_families(reader: LatentStatistics, scores: dict[str, Score], blocks: Blocks) -> dict[str, FeatureFamily]:
    """Describe each label family: its classes, and the features' specialization in it."""
    labels, bound = labels_of(blocks), z_bound(reader.n_latents)
    return {
        family: FeatureFamily(
            coverage=labels[family].coverage,
            share=labels[family].share,
            si=row_of("", "si", family, score),
            significant=int((score.units_z > bound).sum()),
        )
        for family, score in scores.items()
    }


def describe_features(
    reader: LatentStatistics,
    scores: dict[str, Score],
    blocks: Blocks,
    contexts: list[list[list[Context]]],
    near: tuple[Tensor, Tensor],
    effects: Effects | None,
    graph: Graph | None,
    attributions: list[LayerAttribution],
    vocabulary: Vocabulary,
) -> list[Feature]:
    """Describe every feature, in order.

    Args:
        contexts: [strongest, random][latent], from `ContextReader`.
        near: indices and cosines [s, k] of decoder neighbours.
        effects: effects on the logits, if there are any.
        attributions: parts of the pathways of routed layers, if there are any.
    """
    pathways = describe_pathway_parts(attributions, z_bound(reader.n_latents))
    ids = blocks.input_ids.reshape(-1)
    preferences = {family: _preferences(reader, family, score, blocks) for family, score in scores.items()}
    placed = {} if graph is None else dict(zip(graph.latents.tolist(), graph.found.communities.tolist(), strict=True))
    highest = reader.strongest.kept.value[:, 0]

    def shown(found: list[Context]) -> list[UseContext]:
        return [
            UseContext(
                tokens=[vocabulary(t) for t in ids[c.start : c.start + len(c.activations)]],
                activations=[_short(a) for a in c.activations],
                peak=c.peak,
            )
            for c in found
        ]

    def logits(tokens: Tensor, values: Tensor, i: int) -> list[LogitEffect]:
        return [
            LogitEffect(vocabulary(t), _short(v)) for t, v in zip(tokens[i].tolist(), values[i].tolist(), strict=True)
        ]

    features = []
    for i, uses in enumerate(reader.uses.tolist()):
        bins = reader.histogram[i].nonzero()[:, 0]
        low, high = (int(bins[0]), int(bins[-1]) + 1) if uses else (0, 0)
        features.append(
            Feature(
                index=i,
                uses=uses,
                density=uses / reader.tokens,
                mean=_short(float(reader.total[i]) / uses) if uses else None,
                max=_short(float(highest[i])) if uses else None,
                community=placed.get(i),
                histogram_from=low - OCTAVES * BINS_AN_OCTAVE if uses else 0,
                histogram=reader.histogram[i, low:high].tolist(),
                preferences={family: found[i] for family, found in preferences.items()},
                neighbours=[
                    Neighbour(j, round(c, 3)) for j, c in zip(near[0][i].tolist(), near[1][i].tolist(), strict=True)
                ],
                promoted=[] if effects is None else logits(effects.promoted, effects.up, i),
                suppressed=[] if effects is None else logits(effects.suppressed, effects.down, i),
                pathways=pathways.get(i, []),
                strongest=shown(contexts[0][i]),
                random=shown(contexts[1][i]),
            )
        )
    return features


def _preferences(reader: LatentStatistics, family: str, score: Score, blocks: Blocks) -> list[Preference]:
    counts, totals = (table.sum(0).double() for table in reader.counts.tables(family))
    names, terms = blocks.label_names[family], divergence_terms(counts, totals)
    return [
        Preference(
            si=_maybe(score.units[i]),
            z=_maybe(score.units_z[i]),
            prefers=None if c < 0 else names[c],
            share=None if c < 0 else _short(float(terms.share[i, c])),
            lift=None if c < 0 else _short(float(terms.lift[i, c])),
        )
        for i, c in enumerate(preferred_classes(counts, totals).tolist())
    ]


def _maybe(value: Tensor) -> float | None:
    number = finite(value)
    return None if number is None else _short(number)


def _short(value: float) -> float:
    """Round to three significant digits, which is what a reader can use and makes the file a third as large.

    >>> _short(0.123456), _short(-1234.5)
    (0.123, -1230.0)
    """
    return float(f"{value:.3g}")
