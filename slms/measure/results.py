"""Assembles the content of a results file: rows beside their control, losses, FLOPs, the prototype's summary."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slms.data.corpora import kind
from slms.data.text import Blocks
from slms.measure.controlled import Controlled
from slms.measure.controls import RANDOM_ROUTER
from slms.measure.pathways import Measurement
from slms.measure.rows import Row, beside_control
from slms.measure.schema import (
    Base,
    Compute,
    Control,
    ControlRow,
    Data,
    DocumentSums,
    LegacyLayer,
    Loss,
    LossDifference,
    Losses,
    Pathway,
    Results,
    Run,
)
from slms.metrics.functional import Interval, document_loss
from slms.metrics.loss import DocumentLoss
from slms.models.flops import Flops
from slms.models.place import parse_place
from slms.models.source import BaseConfig, resolve

LEGACY_MIN_TOKENS = 10  # `llm-routing.py` leaves out pathways with fewer activations


def assemble(
    run: Run,
    base: Base,
    data: Data,
    measured: Measurement,
    *,
    dense: DocumentLoss | None = None,
    controlled: Controlled | None = None,
    random_weights: Sequence[Row] = (),
    flops: Flops | None = None,
    routing: dict[str, Any] | None = None,
    control_run: dict[str, Any] | None = None,
) -> Results:
    """Assemble the content of a results file.

    Args:
        measured: the measurement of the model on the validation text.
        dense: losses of the dense base on the same text, for the paired difference.
        controlled: the routers beside their controls, on a sample of the text.
        random_weights: the rows of a model with random weights on the same text, itself a control.
        flops: FLOPs of the model at the measured density.
        routing: the routing configuration as plain values.
        control_run: how the control was made, if the run is one.
    """
    controls = {} if controlled is None else dict(controlled.controls)
    rows = measured.rows if controlled is None else [*measured.rows, *controlled.rows]
    if random_weights:
        controls["random_weights"] = of_random_weights(measured.rows, random_weights)
    if RANDOM_ROUTER in controls:
        rows = beside_control(rows, controls[RANDOM_ROUTER].rows)
    return Results(
        run=run,
        base=base,
        data=data,
        losses=losses_of(measured.loss, dense, measured.kl),
        compute=None if flops is None else compute_of(flops),
        routing=routing,
        control_run=control_run,
        rows=[replace(row, seed=run.seed) for row in rows],
        controls=controls,
        pathways=measured.pathways,
        labels=measured.labels,
        legacy=legacy_block(measured.pathways),
    )


def of_random_weights(rows: Sequence[Row], random: Sequence[Row]) -> Control:
    """The rows of a model with random weights as a control of `rows`."""
    known = {row.key: row.value for row in rows}
    found = []
    for row in random:
        own, there = row.value, known.get(row.key)
        apart = None if own is None or there is None else there - own
        found.append(ControlRow(*row.key, own, difference=apart))
    tokens = max((row.n or 0 for row in random), default=0)
    return Control("the same model with random weights and routers, with its own loads", 1, tokens, found)


def base_of(config: BaseConfig) -> Base:
    """The base that a configuration resolved to."""
    found = resolve(config)
    return Base(name=found.name, source=found.kind, asked=config.hub or config.name or found.name)


def data_of(corpus: str, blocks: Blocks, train_tokens: int | None = None, validated_on: str | None = None) -> Data:
    """Describe the text of the measurement (`validated_on`, in words), and how many tokens there were to train on."""
    return Data(
        name=corpus,
        source=kind(corpus),
        train_tokens=train_tokens,
        validation_tokens=int(blocks.input_ids.size),
        validated_on=validated_on,
        validation_documents=blocks.n_documents,
    )


def compute_of(flops: Flops) -> Compute:
    """FLOPs per token, with the shares saved."""
    return Compute(
        active_fraction=flops.active_fraction,
        mlp_dense=float(flops.mlp_dense),
        mlp_routed=float(flops.mlp_routed),
        total_dense=float(flops.total_dense),
        total_routed=float(flops.total_routed),
        mlp_saved=flops.mlp_saving,
        total_saved=flops.total_saving,
        head_fraction=flops.head_fraction,
    )


def loss_of(sums: DocumentLoss) -> Loss:
    """Loss and perplexity, with the interval over documents."""
    nll, tokens = sums.nll, sums.tokens
    nats = document_loss(nll, tokens)  # not `sums.compute()`, which under DDP would wait for other ranks
    return Loss(nats.value, nats.low, nats.high, math.exp(nats.value), int((tokens > 0).sum()), nats.n)


def losses_of(model: DocumentLoss, dense: DocumentLoss | None, kl: DocumentLoss | None = None) -> Losses:
    """The losses of the model and of the dense base it started from, with their paired difference and KL."""
    by_document = sums_of(model)
    found, documents = Losses(loss_of(model), by_document=by_document), len(by_document.tokens)
    if dense is not None:
        found = replace(found, dense=loss_of(dense), difference=_difference(model.minus(dense), documents))
    if kl is not None:
        found = replace(found, kl=_difference(document_loss(kl.nll, kl.tokens), documents))
    return found


def sums_of(loss: DocumentLoss) -> DocumentSums:
    """The sums of the documents that have predicted tokens, in their order."""
    counted = loss.tokens > 0
    return DocumentSums(loss.nll[counted].tolist(), loss.tokens[counted].tolist())


def _difference(nats: Interval, documents: int) -> LossDifference:
    return LossDifference(nats.value, nats.low, nats.high, documents)


def legacy_block(pathways: Mapping[str, list[Pathway]]) -> dict[str, LegacyLayer]:
    """The prototype's summary by layer of the MLPs; utilization is over *all* pathways (its own is always 100 %)."""
    places = {place: parse_place(place) for place in pathways}
    return {f"layer_{at.layer}": _legacy(pathways[place]) for place, at in places.items() if at.part == "mlp"}


def _legacy(pathways: Sequence[Pathway]) -> LegacyLayer:
    seen = [pathway for pathway in pathways if pathway.tokens >= LEGACY_MIN_TOKENS]
    purities = [pathway.purity_legacy for pathway in seen if pathway.purity_legacy is not None]
    return LegacyLayer(
        avg_purity=statistics.fmean(purities) if purities else None,
        std_purity=statistics.pstdev(purities) if purities else None,
        max_purity=max(purities, default=None),
        # their purity is 1 − normalised entropy
        avg_normalized_entropy=1 - statistics.fmean(purities) if purities else None,
        pathway_utilization=len(seen) / len(pathways),
        active_pathways=len(seen),
        total_pathways=len(pathways),
    )
