"""Makes the rows of `features.csv` and the summary that `eval.py features` prints."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from slms.report.feature_schema import Feature, FeatureResults, LayerPathways
from slms.report.tables import interval, number, text_table
from slms.report.words import visible

USE = "feature uses density mean max community".split()
LABELS = "family prefers si z lift".split()
WORDS = "tokens promoted suppressed".split()
COLUMNS = (*USE, *LABELS, *WORDS, "neighbour", "cosine", *"layer pathway part part_z".split())
PATHWAY_COLUMNS = ("layer", "pathway", "load", "n_features", "features", "tokens")
SHOWN = 12


def feature_rows(results: FeatureResults) -> Iterator[list[Any]]:
    """Yield a row for each feature: its numbers, the family it tells most about, its tokens and its logit effects."""
    words = results.vocabulary
    for f in results.features:
        family = best_family(f)
        p = f.preferences[family] if family else None
        near = f.neighbours[0] if f.neighbours else None
        writer = max(f.pathways, key=lambda c: c.part, default=None)
        use = f.index, f.uses, f.density, f.mean, f.max, f.community
        label = (p.prefers, p.si, p.z, p.lift) if p else (None,) * 4
        logits = [[words[e.token] for e in effects[:5]] for effects in (f.promoted, f.suppressed)]
        told = (" ".join(map(visible, tokens)) for tokens in (peak_tokens(f, words), *logits))
        neighbour = (near.feature, near.cosine) if near else (None,) * 2
        written = (writer.layer, writer.pathway, writer.part, writer.z) if writer else (None,) * 4
        yield [*use, family, *label, *told, *neighbour, *written]


def pathway_rows(results: FeatureResults) -> Iterator[list[Any]]:
    """Yield a row for each pathway: its load, how many features it writes, the strongest of them and their tokens."""
    for layer in results.layers:
        for p in layer.pathways:
            tokens = [peak_tokens(results.features[i], results.vocabulary)[0] for i in p.features]
            features, said = " ".join(map(str, p.features)), " ".join(map(visible, dict.fromkeys(tokens)))
            yield [layer.layer, p.index, p.load, p.n_features, features, said]


def best_family(feature: Feature) -> str | None:
    """The label family about which a feature's use tells most: the one with the highest SI among those with a z."""
    known = {family: p.si for family, p in feature.preferences.items() if p.si is not None and p.z is not None}
    return max(known, key=lambda family: known[family]) if known else None


def peak_tokens(feature: Feature, vocabulary: list[str]) -> list[str]:
    """The tokens of a feature's strongest uses, the commonest first."""
    peaks = [context.tokens[context.peak] for context in feature.strongest]
    return [vocabulary[t] for t in sorted(set(peaks), key=lambda t: -peaks.count(t))]


def summary(results: FeatureResults) -> str:
    """Text about what all features tell of each label family, the communities, and the features that tell most."""
    place = results.site if results.site == results.target else f"{results.site} to {results.target}"
    alive = results.d_sae - results.dead
    head = (
        f"{results.directory}: {results.kind} of {results.model} at {place}, {alive} of {results.d_sae} features used\n"
        f"{results.tokens} tokens of {results.corpus}, {results.l0:.1f} features a token"
    )
    rows = []
    for name, f in results.families.items():
        counts = f"{f.significant} of {alive}", f"{100 * f.coverage:.1f} %"
        of_place = number(f.si.value), interval(f.si.low, f.si.high), number(f.si.null_mean), number(f.si.ceiling)
        rows.append([name, *of_place, *counts])
    columns = ["labels", "SI of a use", "95 % interval", "null", "ceiling", "beyond chance", "labelled"]
    rate = "beyond chance: features whose SI any of as many with permuted labels reaches in 1 of 20 texts at most"
    parts = [head, f"{text_table(columns, rows)}\n  {rate}"]
    if (g := results.graph) is not None:
        parts.append(
            f"  communities of features used together: {len(g.communities)}, of {g.features} features\n"
            f"  Q {g.q:.3f} {interval(g.low, g.high)}, shuffled {g.null_mean:.3f}, stability {g.stability:.2f}"
        )
    if results.writers:
        parts.append(_writers(results))
    parts.append(_most_specialized(results))
    parts += [_layer_pathways(results, layer) for layer in results.layers]
    return "\n\n".join(parts)


def _writers(results: FeatureResults) -> str:
    rows = []
    for w in results.writers:
        tokens = [peak_tokens(results.features[i], results.vocabulary)[0] for i in w.features]
        said = " ".join(visible(token, 10) for token in dict.fromkeys(tokens))
        rows.append([w.name, said[:40], *map(str, w.histogram), str(w.n_features)])
    head = ["features", "only here: strongest at", *(f"<.{i}" for i in range(1, 10)), "≤1", "≥.9"]
    note = "features by the share of their decoder's norm at each; ≥.9: those that only this one has"
    return f"{text_table(head, rows, left=2)}\n  {note}"


def _most_specialized(results: FeatureResults) -> str:
    def score(feature: Feature) -> float:
        family = best_family(feature)
        return (feature.preferences[family].si or 0.0) if family else 0.0

    rows = []
    for f in sorted(results.features, key=score, reverse=True)[:SHOWN]:
        if (family := best_family(f)) is None:
            continue
        p = f.preferences[family]
        tokens = " ".join(visible(t, 10) for t in peak_tokens(f, results.vocabulary)[:3])
        promotes = " ".join(visible(results.vocabulary[e.token], 10) for e in f.promoted[:3])
        prefers, density = f"{visible(p.prefers or '–', 12)} {p.lift:.1f}×", f"{100 * f.density:.2f} %"
        rows.append([str(f.index), tokens[:30], promotes[:30], prefers, density, number(p.si)])
    head = ["feature", "strongest at", "promotes", "prefers", "density", "SI"]
    table = text_table(head, rows, left=4)
    return table + "\n  SI: of use and class, chance subtracted"


def _layer_pathways(results: FeatureResults, layer: LayerPathways) -> str:
    rows = []
    for row, p in zip(pathway_rows(replace(results, layers=[layer])), layer.pathways, strict=True):
        rows.append([f"p{p.index}", row[-1][:60], str(p.n_features), f"{100 * p.load:.0f} %"])
    table = text_table([f"L{layer.layer}", "its features are strongest at", "writes", "chosen"], rows, left=2)
    written = sum(p.n_features for p in layer.pathways)
    note = (
        f"  {written} of {results.d_sae} features have a pathway that writes them beyond chance; median part of all "
        f"pathways {number(layer.part, 2)}\n  gathered in one pathway {layer.concentration:.3f}; random groups of the "
        f"same neurons {layer.null_mean:.3f}"
    )
    return f"{table}\n{note}"
