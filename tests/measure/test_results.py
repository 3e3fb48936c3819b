"""A results file is assembled from the right parts: the prototype's summary, controls, losses."""

import statistics
from dataclasses import replace

import pytest
import torch

from slms.measure.results import compute_of, legacy_block, losses_of, of_random_weights
from slms.measure.rows import Row
from slms.measure.schema import ControlRow, Pathway
from slms.metrics.loss import DocumentLoss
from slms.models.flops import Flops


def made(n):
    return [Pathway(i, tokens=10 + i, load=1 / n, purity_legacy=i / n) for i in range(n)]


def test_legacy_block_is_the_prototypes_summary():
    pathways = made(16)
    block = legacy_block({"L3.mlp": pathways})["layer_3"]
    purities = [pathway.purity_legacy for pathway in pathways]
    assert block.avg_purity == pytest.approx(sum(purities) / 16)
    assert block.std_purity == pytest.approx(statistics.pstdev(purities))
    assert block.max_purity == max(purities)
    assert block.avg_normalized_entropy == pytest.approx(1 - block.avg_purity)
    assert (block.active_pathways, block.total_pathways, block.pathway_utilization) == (16, 16, 1.0)


def test_legacy_utilization_counts_silent_pathways():
    """The prototype divides by the active pathways only, and so always reports 100 %."""
    quiet = [replace(p, tokens=9, purity_legacy=None) if p.index < 4 else p for p in made(16)]
    block = legacy_block({"L0.mlp": quiet})["layer_0"]
    assert (block.active_pathways, block.pathway_utilization) == (12, 0.75)


def test_random_weights_are_a_control_under_their_own_name():
    rows, random = [Row("L0.mlp", "purity", value=0.5, n=9)], [Row("L0.mlp", "purity", value=0.125, n=9)]
    found = of_random_weights(rows, random)
    assert (found.seeds, found.tokens, found.load_error) == (1, 9, None)
    assert found.rows == [ControlRow("L0.mlp", "purity", "", 0.125, difference=0.375)]


def test_the_sources_know_mlps_only():
    assert list(legacy_block({"L3.attn": made(2), "L3.mlp": made(4)})) == ["layer_3"]


def test_difference_to_the_dense_base_is_paired():
    losses = []
    for extra in (0.0, 0.1):
        sums = DocumentLoss()
        sums.update(torch.tensor([1.0, 5.0, 9.0, 2.0]) + extra, torch.tensor([0, 1, 2, 2]))
        losses.append(sums)
    found = losses_of(losses[1], losses[0])
    assert found.difference.nats == pytest.approx(0.1, rel=1e-5)
    assert (found.difference.low, found.difference.high) == (pytest.approx(0.1, rel=1e-5), pytest.approx(0.1, rel=1e-5))
    assert found.difference.documents == 3 and found.dense.nats == pytest.approx(4.25)


def test_compute_states_shares_saved():
    compute = compute_of(Flops(100, 40.0, 200, 140.0, 0.25))
    assert (compute.active_fraction, compute.mlp_saved, compute.total_saved) == (0.25, 0.6, 0.30000000000000004)
    assert (compute.mlp_dense, compute.total_routed) == (100.0, 140.0)
