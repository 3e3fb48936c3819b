"""The parts of a results file put together: measurements, their random-model null, FLOPs, labels, the legacy block."""

from dataclasses import replace
from typing import Any

from slms.measure.pathways import Measurement, losses_of
from slms.measure.schema import Base, Compute, Data, Estimate, Layer, Results, Run
from slms.metrics.loss import DocumentLoss
from slms.models.flops import Flops
from slms.report.results import legacy_block


def assemble(
    run: Run,
    base: Base,
    data: Data,
    measured: Measurement,
    *,
    dense: DocumentLoss | None = None,
    random: Measurement | None = None,
    flops: Flops | None = None,
    routing: dict[str, Any] | None = None,
) -> Results:
    """A results file.

    Args:
        measured: the model on the validation text.
        dense: losses of the dense base on the same text, for the paired difference.
        random: the same measurement of a randomly initialised model.
        flops: of the model at the measured density.
        routing: the routing configuration as plain values.
    """
    layers = measured.layers if random is None else with_random(measured.layers, random.layers)
    return Results(
        run=run,
        base=base,
        data=data,
        losses=losses_of(measured.loss, dense),
        compute=None if flops is None else compute_of(flops),
        routing=routing,
        layers=layers,
        labels=measured.labels,
        legacy=legacy_block(layers),
    )


def compute_of(flops: Flops) -> Compute:
    """FLOPs per token with the shares saved."""
    return Compute(
        active_fraction=flops.active_fraction,
        mlp_dense=float(flops.mlp_dense),
        mlp_routed=float(flops.mlp_routed),
        total_dense=float(flops.total_dense),
        total_routed=float(flops.total_routed),
        mlp_saved=flops.mlp_saving,
        total_saved=flops.total_saving,
    )


def with_random(layers: list[Layer], random: list[Layer]) -> list[Layer]:
    """Each estimate beside what a randomly initialised model scores in the same layer."""
    beside = {layer.layer: layer for layer in random}
    return [_beside(layer, beside[layer.layer]) for layer in layers]


def _beside(layer: Layer, other: Layer) -> Layer:
    def put(mine: Estimate, null: Estimate) -> Estimate:
        return replace(mine, random_model=null.value)

    return replace(
        layer,
        purity=put(layer.purity, other.purity),
        purity_legacy=put(layer.purity_legacy, other.purity_legacy),
        entropy=put(layer.entropy, other.entropy),
        utilization=put(layer.utilization, other.utilization),
        si={family: put(mine, other.si[family]) for family, mine in layer.si.items()},
        si_given_token={
            family: put(mine, other.si_given_token[family]) for family, mine in layer.si_given_token.items()
        },
    )
