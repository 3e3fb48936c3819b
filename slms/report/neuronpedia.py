"""Writes measured features as a Neuronpedia export: `v1/MODEL/SOURCE/`, which its importer reads.

Its importer (`apps/webapp/app/api/admin/import`) creates each line of `model|release|source|sourceset.jsonl`, and
copies `features|activations|explanations/batch-N.jsonl.gz` into tables whose columns are the keys of a file's first
line. So every line of a file has the same keys, and each key is a column.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from slms.measure.features import BINS_AN_OCTAVE
from slms.report.feature_schema import Feature, FeatureResults

CREATOR = "clkht01d40000jv08hvalcvly"  # the user that Neuronpedia's own seed creates in every local database
BATCH = 256  # features of one file
INFO = "__"  # divides a source's set from what tells it from others of the set (apps/webapp/lib/utils/source.ts)


class Subject(NamedTuple):
    """What the features are of, beyond what `FeatureResults` says."""

    release: str
    """The run, as a release."""
    layer: int
    """The layer that the coder reads."""
    hook_name: str
    """TransformerLens's name of the site."""
    layers: int
    """Layers of the model."""
    neurons: int
    """Neurons of one MLP."""
    block_size: int
    """Tokens of one prompt."""
    kind: str
    """How the coder was trained to choose latents; BatchTopK and Matryoshka are stored as `jump_relu`."""
    name: str = ""
    """The coder's own name; empty if its site is its name."""


def slug(text: str) -> str:
    """Return a name that Neuronpedia accepts: lower-case letters, digits, `-` and single `_`.

    >>> slug("EleutherAI/Pythia-70m.v2__b")
    'eleutherai-pythia-70m-v2_b'
    """
    return re.sub(r"__+", "_", re.sub(r"[^a-z0-9_-]+", "-", text.lower())).strip("-") or "unnamed"


def source_set(results: FeatureResults, subject: Subject) -> str:
    """Return the name of the set of sources: the site or sites without the layer, the kind and the width."""
    sites = dict.fromkeys((results.site, results.target))
    one = not any("+" in site for site in sites)
    stem = "-to-".join(re.sub(rf"\.{subject.layer}(\.|$)", r"\1", site) if one else site for site in sites)
    return slug(f"{stem}-{subject.kind}-{results.d_sae}")


def source_id(results: FeatureResults, subject: Subject) -> str:
    """Return the name of one source: the layer, its set and, if it has one of its own, the coder's name."""
    named = f"{INFO}{slug(subject.name).strip('_')}" if subject.name else ""
    return f"{subject.layer}-{source_set(results, subject)}{named}"


def write_neuronpedia(directory: Path, results: FeatureResults, subject: Subject) -> Path:
    """Write one coder's features below `directory`; returns its own directory, `v1/MODEL/SOURCE`.

    Raises:
        ValueError: another coder has been written there.
    """
    model, sources = slug(results.model), source_set(results, subject)
    source = source_id(results, subject)
    place = directory / "v1" / model / source
    if place.exists():
        raise ValueError(f"{results.directory}: a second coder would be {model}/{source}; rename its directory")
    when = {"creatorId": CREATOR, "createdAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")}
    public = {"visibility": "PUBLIC"}
    release = slug(subject.release)
    where = {"modelId": model, "layer": source}
    title = f"{subject.kind}, {results.d_sae} latents, of {results.model}"
    _lines(
        place / "model.jsonl",
        {
            "id": model,
            "displayName": results.model,
            "displayNameShort": results.model,
            "instruct": False,
            "layers": subject.layers,
            "neuronsPerLayer": subject.neurons,
            "owner": "",
            "inferenceEnabled": False,
        }
        | public
        | when,
    )
    credit = {"description": title, "creatorName": "slms", "urls": []}
    _lines(place / "release.jsonl", {"name": release, "descriptionShort": title} | credit | public | when)
    _lines(
        place / "sourceset.jsonl",
        {"modelId": model, "name": sources, "hasDashboards": True, "releaseName": release} | credit | public | when,
    )
    _lines(
        place / "source.jsonl",
        {
            "id": source,
            "modelId": model,
            "setName": sources,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "num_prompts": -(-results.tokens // subject.block_size),
            "num_tokens_in_prompt": subject.block_size,
            "dataset": results.corpus,
            "notes": f"logits: {results.logits}",
        }
        | public
        | when,
    )
    for n, start in enumerate(range(0, len(results.features), BATCH)):
        some = results.features[start : start + BATCH]
        of = where | when | {"sourceSetName": sources, "hookName": subject.hook_name}
        _batch(place / "features" / f"batch-{n}.jsonl.gz", [of | _feature(results, f) for f in some])
        if uses := [where | when | use for f in some for use in _activations(results, f, source)]:
            _batch(place / "activations" / f"batch-{n}.jsonl.gz", uses)  # the importer reads no file without a line
    _batch(place / "explanations" / "batch-0.jsonl.gz", [])
    return place


def _feature(results: FeatureResults, f: Feature) -> dict[str, Any]:
    words = results.vocabulary
    centres = [2 ** ((f.histogram_from + i + 0.5) / BINS_AN_OCTAVE) for i in range(len(f.histogram))]
    return {
        "index": str(f.index),
        "maxActApprox": f.max or 0.0,
        "hasVector": False,
        "topkCosSimIndices": [n.feature for n in f.neighbours],
        "topkCosSimValues": [n.cosine for n in f.neighbours],
        "pos_str": [words[e.token] for e in f.promoted],
        "pos_values": [e.logit for e in f.promoted],
        "neg_str": [words[e.token] for e in f.suppressed],
        "neg_values": [e.logit for e in f.suppressed],
        "frac_nonzero": f.density,
        "freq_hist_data_bar_heights": [float(n) for n in f.histogram],
        "freq_hist_data_bar_values": [float(f"{c:.3g}") for c in centres],
    }


def _activations(results: FeatureResults, f: Feature, source: str) -> Iterator[dict[str, Any]]:
    """Yield the strongest uses, then the random ones; a use of both kinds once."""
    seen = set()
    for context in (*f.strongest, *f.random):
        key = json.dumps([source, results.model, f.index, context.tokens, context.activations, context.peak])
        if key in seen:
            continue
        seen.add(key)
        highest = max(context.activations)
        yield {
            "id": "c" + hashlib.sha256(key.encode()).hexdigest()[:24],
            "index": str(f.index),
            "tokens": [results.vocabulary[t] for t in context.tokens],
            "values": context.activations,
            "maxValue": highest,
            "maxValueTokenIndex": context.activations.index(highest),
            "minValue": min(context.activations),
            "qualifyingTokenIndex": context.peak,
            "dataSource": results.corpus,
        }


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"


def _lines(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_line(row), encoding="utf-8")


def _batch(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(map(_line, rows)).encode(), compresslevel=6, mtime=0))
