"""`eval.py features`: what the latents of a sparse autoencoder mean; a table, and a page to browse them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from slms.commands.coder import OpenCoder, open_coder
from slms.commands.subject import results_of
from slms.data.tokenizer import special_ids
from slms.measure.attribution import LayerAttribution, PathwayAttribution, contributing_layers
from slms.measure.feature_graph import communities
from slms.measure.features import ContextReader, LatentStatistics, neighbours, read_uses, z_bound
from slms.measure.logit_effects import METHOD, Effects, logit_effects, written
from slms.models.anatomy import find_mlps
from slms.models.pair import models_of
from slms.models.sites import Site, read_sites
from slms.progress import Progress, progress
from slms.report.artifacts import write_csv
from slms.report.attribution import attribution_figure, describe_layer_pathways
from slms.report.feature_page import write_features
from slms.report.feature_schema import FeatureResults
from slms.report.feature_tables import COLUMNS, PATHWAY_COLUMNS, feature_rows, pathway_rows, summary
from slms.report.features import Vocabulary, describe_families, describe_features, describe_graph, describe_writers
from slms.report.palette import write_figure
from slms.report.words import shorten
from slms.sae.evaluate import Placed
from slms.sae.load import coder_directories

LINEARISED = 64  # tokens at which the final norm is linearised


def features(
    directory: str,
    n_tokens: int | None = 131_072,
    batch_size: int = 16,
    n_strongest: int = 12,
    n_random: int = 4,
    output_dir: str = "artifacts",
    **options,
) -> None:
    """Show what each feature of a sparse autoencoder responds to and writes, as a table and as a page to browse.

    For each feature: top contexts, density, logit effects, specialization with its null, co-activation community and
    decoder neighbours. For a routed model also: which pathways write which features (pathways.csv, .png and .svg).

    Args:
        directory: a SAELens directory (cfg.json, sae_weights.safetensors), or a run, to read each of its `saes/`.
        n_tokens: tokens to read.
        batch_size: blocks in one forward pass.
        n_strongest: how many of the strongest uses of each feature to show.
        n_random: how many uses, drawn at random, to show beside them.
        output_dir: features.json, features.csv and features.html go to OUTPUT_DIR/features/NAME/TEXT/.
    """
    for path in coder_directories(Path(directory)):
        opened = open_coder(str(path), batch_size=batch_size, n_tokens=n_tokens, **options)
        results, attributions = measured_features(str(path), opened, batch_size, n_strongest, n_random)
        shown = {"n_strongest": n_strongest, "n_random": n_random}
        subject = opened.subject._replace(name=str(path))
        place, _ = results_of(subject, output_dir, "features", **opened.made_from, **shown)
        write_csv(place / "features.csv", COLUMNS, feature_rows(results))
        if attributions:
            write_csv(place / "pathways.csv", PATHWAY_COLUMNS, pathway_rows(results))
            title = f"Which pathway writes which feature of {results.site}: {shorten(results.model, 60)}"
            write_figure(place / "pathways.png", attribution_figure(attributions, results.z_bound, title))
        write_features(place, results)
        print(f"{summary(results)}\n\nwritten to {place}")


def measured_features(
    directory: str, opened: OpenCoder, batch_size: int, n_strongest: int, n_random: int
) -> tuple[FeatureResults, list[LayerAttribution]]:
    """Measure a coder's features over its text; also the parts of a routed model's pathways, if there are any."""
    subject, blocks = opened.subject, opened.subject.blocks
    assert blocks.doc_ids is not None, "a subject's blocks carry their documents"
    coder = opened.placed
    _fits(directory, coder, opened)
    reader = LatentStatistics(opened.coder.d_sae, blocks, n_strongest, n_random)
    n_batches = -(-len(blocks.input_ids) // batch_size)

    def uses(what: str):
        found = read_uses(opened.lm, blocks, coder, special_ids(subject.tokenizer), batch_size)
        return progress(found, what, n_batches)

    for batch in uses("uses"):
        reader.update(batch)
    contexts = ContextReader(blocks, (reader.strongest.kept, reader.random.kept))
    for batch in uses("contexts"):
        contexts.update(batch)
    attributions = []
    if contributing_layers(subject.model, opened.source):
        attribution = PathwayAttribution(subject.model, opened.source, opened.coder.W_enc)
        for batch in uses("pathways"):
            attribution.update(batch)
        attributions = attribution.compute()
    scores = reader.counts.compute()
    with Progress("communities", 13) as steps:
        graph = communities(reader, lambda step: steps.update(1, step))
    effects, method = _effects(opened)
    vocabulary = Vocabulary()
    described = describe_features(
        reader,
        scores,
        blocks,
        contexts.compute(),
        neighbours(opened.coder.W_dec, 8),
        effects,
        graph,
        attributions,
        vocabulary,
    )
    if parts := opened.source.parts:
        norms = opened.coder.source_norms
        shares = (norms / norms.sum(1, keepdim=True)).tolist()
        named = [dict(zip((part.name for part in parts), row, strict=True)) for row in shares]
        described = [replace(f, sources=sources) for f, sources in zip(described, named, strict=True)]
    bound = z_bound(opened.coder.d_sae)
    results = FeatureResults(
        directory=directory,
        model=subject.name,
        versus=opened.versus,
        kind=opened.coder.config.kind,
        site=opened.source.name,
        target=opened.target.name,
        d_sae=opened.coder.d_sae,
        corpus=subject.source,
        split=subject.text["split"],
        tokens=reader.tokens,
        documents=len(np.unique(blocks.doc_ids)),
        l0=int(reader.uses.sum()) / reader.tokens,
        dead=int((reader.uses == 0).sum()),
        logits=method,
        z_bound=bound,
        families=describe_families(reader, scores, blocks),
        graph=None if graph is None else describe_graph(graph, described),
        writers=describe_writers(described, {part.name: part.of or part.name for part in opened.source.parts}),
        layers=[describe_layer_pathways(found, bound) for found in attributions],
        vocabulary=vocabulary.texts(subject.tokenizer),
        features=described,
    )
    return results, attributions


def _fits(directory: str, coder: Placed, opened: OpenCoder) -> None:
    """Refuse a coder that reconstructs worse than the mean: one of another model may still have the right shape."""
    usual = torch.linalg.vector_norm(opened.x, dim=1) <= coder.longest
    x, y = opened.x[usual], opened.y[usual]
    error = (y - coder.reconstruct(x)).square().sum() / (y - y.mean(0)).square().sum()
    if not error < 1:
        raise ValueError(
            f"{directory}: at {opened.place} of {opened.subject.name} it reconstructs worse than the mean does "
            f"(FVU {error:.3g}); it was made for another model or site"
        )


def _effects(opened: OpenCoder) -> tuple[Effects | None, str]:
    """Logit effects; of two models, each feature's in the one to which it writes more."""
    found = {of: _effects_in(opened, of) for of in models_of(opened.lm)}
    if any(effects is None for effects, _ in found.values()) or len(found) == 1:
        return next((one for one in found.values() if one[0] is None), next(iter(found.values())))
    of_base, of_second = (effects for effects, _ in found.values())
    assert of_base is not None and of_second is not None
    second = [part.of != next(iter(found)) for part in opened.target.parts]
    shares = opened.coder.source_norms / opened.coder.source_norms.sum(1, keepdim=True)
    more = (shares[:, second].sum(1) > 0.5)[:, None]
    chosen = (torch.where(more, b, a) for a, b in zip(of_base, of_second, strict=True))
    return Effects(*chosen), f"{METHOD}; of two models, the one to which the feature writes more"


def _effects_in(opened: OpenCoder, of: str) -> tuple[Effects | None, str]:
    model, target, W_dec = models_of(opened.lm)[of], opened.target, opened.coder.W_dec.detach()
    if parts := target.parts:  # the last residual stream is nearest to the logits
        mine = [part for part in parts if part.of == of]
        target = max([part for part in mine if part.kind == "residual"] or mine, key=lambda part: part.layer)
        W_dec = W_dec.chunk(len(parts), dim=1)[parts.index(target)]
    directions = written(model, target, W_dec)
    if isinstance(directions, str):
        return None, f"none: {directions}"
    last = Site("residual", max(find_mlps(model)))
    ids = torch.from_numpy(opened.subject.blocks.input_ids[:4].astype("int64"))
    residuals = read_sites(model, ids, [last])[last.name]
    some = residuals[torch.linspace(0, len(residuals) - 1, LINEARISED).long()]
    return logit_effects(model, directions, some), METHOD
