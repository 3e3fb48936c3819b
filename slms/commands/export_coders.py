"""How `eval.py export` writes the coders of a run: as a Neuronpedia export, or as a circuit-tracer transcoder set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slms.commands.coder import OpenCoder, open_coder
from slms.commands.features import measured_features
from slms.commands.subject import public_name, run_section, short_name
from slms.files import write_atomic
from slms.models.anatomy import find_mlps
from slms.models.card import CARD, shortened
from slms.models.mlp_norm import mlp_norm
from slms.models.weights import read_mlp
from slms.report.export_coders import neuronpedia_card, set_card
from slms.report.neuronpedia import Subject, write_neuronpedia
from slms.report.provenance import command_line
from slms.sae.circuit_tracer import fvu, layer_of, mean_threshold, thresholded, write_set
from slms.sae.coders import TopK
from slms.sae.config import CoderSpec
from slms.sae.load import coder_directories

SHOWN = {"n_strongest": 20, "n_random": 10}  # uses of each feature that Neuronpedia shows


def neuronpedia(run: str, new: Path, text: dict[str, Any]) -> str:
    """Measure every coder of a run and write its features, activations and descriptions for Neuronpedia's importer."""
    written, sources = [], {}
    for path in coder_directories(Path(run)):
        opened = open_coder(str(path), **text)
        if opened.versus is not None:
            raise ValueError(f"{path}: reads two models; Neuronpedia shows coders of one")
        results, _ = measured_features(str(path), opened, opened.batch_size, **SHOWN)
        results = replace(results, model=public_name(results.model), corpus=shortened(results.corpus))
        mlps, layer = find_mlps(opened.subject.model), opened.source.layer
        subject = Subject(
            release=short_name(run),
            layer=layer,
            hook_name=opened.target.hook_name,
            layers=len(mlps),
            neurons=len(read_mlp(mlps[layer]).W_in),
            block_size=opened.subject.blocks.input_ids.shape[1],
            kind=trained_kind(path) or results.kind,
            name="" if path.name in (results.site, f"{results.site}-to-{results.target}") else path.name,
        )
        place = write_neuronpedia(new, results, subject).relative_to(new)
        written.append(f"{place}: {results.d_sae} features, {results.dead} of them never used")
        sources[str(place)] = results.d_sae, results.dead
    title = short_name(run)
    card = neuronpedia_card(results.model, title, sources, results.tokens, results.corpus, command_line())
    write_atomic(new / CARD, card)
    return "\n".join(written)


def trained_kind(directory: Path) -> str | None:
    """The kind that a coder in a run's `saes/` was trained as, from the run's config; None if that is not known."""
    config = directory.resolve().parent.parent / "config.yaml"
    if not config.is_file():
        return None
    coders = run_section(config, "model").get("coders") or []
    for one in coders:
        if CoderSpec(one["site"], one.get("target"), one.get("name")).label == directory.name:
            return one.get("coder", {}).get("kind")
    return None


def circuit_tracer(run: str, new: Path, text: dict[str, Any]) -> str:
    """Write the transcoders of a run, or of several (RUN,RUN), one for each layer's MLP, as a transcoder set."""
    found: dict[int, OpenCoder] = {}
    names: dict[int, str] = {}
    for path in (path for one in run.split(",") for path in coder_directories(Path(one))):
        opened = open_coder(str(path), **text)
        layer = layer_of(opened.source.name, opened.target.name)
        if layer is None:
            continue
        if layer in found:
            raise ValueError(f"{path}: {names[layer]} is a transcoder of layer {layer} too; name only one of them")
        found[layer], names[layer] = opened, str(path)
    if not found:
        raise ValueError(f"{run}: no transcoder from mlp_in.L to mlp_out.L; circuit_tracer needs one for each layer")
    lines, thresholds, norms = [], {}, {}
    for layer, opened in sorted(found.items()):
        norms[layer] = mlp_norm(opened.subject.model, layer)
        if isinstance(opened.coder, TopK):
            thresholds[layer] = mean_threshold(opened.coder, opened.x)
            lines.append(f"layer {layer}: {_cost(opened, thresholds[layer])}")
    subject = next(iter(found.values())).subject
    n_layers = len(find_mlps(subject.model))
    coders = {layer: opened.coder for layer, opened in found.items()}
    model, title = public_name(subject.name), ", ".join(dict.fromkeys(map(short_name, run.split(","))))
    write_set(coders, names, n_layers, thresholds, norms, new, model)
    write_atomic(new / CARD, set_card(model, title, n_layers, coders[0].d_sae, lines, command_line()))
    return "\n".join([*lines, f"{n_layers} layers, {coders[0].d_sae} features each"])


@torch.no_grad()
def _cost(opened: OpenCoder, threshold: Tensor) -> str:
    """Say what a threshold in place of TopK costs on a sample of the text."""
    coder, x, y = opened.coder, opened.x, opened.y
    acts = thresholded(coder, x, threshold)
    output = coder.decode(acts) if coder.W_skip is None else coder.decode(acts) + x @ coder.W_skip.T
    l0 = float((acts > 0).sum(1).float().mean())
    return (
        f"TopK became a threshold of {threshold:.4g}, since circuit-tracer has no other form: FVU {fvu(output, y):.4f} "
        f"instead of {fvu(coder(x), y):.4f}, L0 {l0:.1f} instead of {coder.config.k}"
    )
