"""Rows and cells of ablations are those of their sums; units are the pathways, or communities."""

import numpy as np
import pytest
import torch

from slms import RoutingConfig, route
from slms.measure.ablation import Ablated, ablate, whole_losses
from slms.measure.causal import (
    Ablation,
    ablation_rows,
    cells_of,
    count_units,
    detectable_rows,
    groups_at,
    unit_sets,
    units_at,
)
from slms.models.routed import routed_modules
from tests.measure.test_ablation import blocks, model  # noqa: F401  fixtures

T = 12


def test_rows_and_cells_are_those_of_the_sums(model, blocks):  # noqa: F811
    unit_of = torch.arange(32) // 16
    whole = whole_losses(model, blocks, ["even"], 3, 4)
    ablated = Ablated(model, blocks, "L1.mlp", None, 4)
    sums = ablate(ablated, unit_sets(unit_of), whole, {"even": 2}, ["a", "b"])
    scores = {"even": sums["even"].score()}
    found = Ablation("L1.mlp", "community", unit_of, sums, scores, {"even": scores["even"]})
    (row,) = ablation_rows([found], seed=5)
    assert row.key == ("L1.mlp", "si_causal", "even") and row.seed == 5
    assert row.n == int(sums["even"].totals.sum()) == 6 * (T - 1)
    assert row.value is row.control is row.difference is None, "so few tokens say nothing"
    (least,) = detectable_rows("L1.mlp", 2, found.control, 5)
    assert least.key == ("L1.mlp", "si_causal_detectable", "even") and least.value is None, "two sets tell no spread"
    cells = cells_of([found], blocks.label_names)
    assert [(cell.unit, cell.neurons, cell.label) for cell in cells] == [
        (unit, 16, label) for unit in range(2) for label in ("even", "odd")
    ]
    rise = sum(cell.rise * cell.tokens for cell in cells if cell.unit == 1)
    assert rise == pytest.approx(float(sums["even"].sums[:, 1].sum()))


def test_units_of_a_routed_mlp_are_its_pathways(model, blocks):  # noqa: F811
    import copy

    ids = torch.from_numpy(blocks.input_ids.astype(np.int64))
    routed = route(copy.deepcopy(model), RoutingConfig(n_pathways=3, k=1, layers=[1]), calibration=ids).eval()
    mlp = routed.transformer.h[1].mlp
    kind, unit_of = units_at(routed, blocks, "L1.mlp", 4)
    assert kind == "pathway" and count_units(unit_of) == 3
    for p in range(3):
        own = mlp.permutation[mlp.offsets[p] : mlp.offsets[p + 1]].sort().values
        assert torch.equal(unit_sets(unit_of)[p].nonzero()[:, 0], own)
    assert units_at(routed, blocks, "L0.mlp", 4)[0] == "community"


def test_units_of_a_routed_attention_are_its_heads_and_groups_share_keys(model, blocks):  # noqa: F811
    ids = torch.from_numpy(blocks.input_ids.astype(np.int64))
    routing = RoutingConfig(target="both", k_heads=1, layers=[1], n_pathways=3, k=1)
    routed = route(model, routing, calibration=ids).eval()
    kind, unit_of = units_at(routed, blocks, "L1.attn", 4)
    assert kind == "head" and unit_of.tolist() == [0] * 4 + [1] * 4
    assert groups_at(routed, "L1.attn", unit_of).tolist() == [0] * 8, "no heads share keys: one group"
    routed_modules(routed)["L1.attn"].n_groups = 2
    assert groups_at(routed, "L1.attn", unit_of).tolist() == [0] * 4 + [1] * 4
    kind, unit_of = units_at(routed, blocks, "L1.mlp", 4)
    assert kind == "pathway" and not groups_at(routed, "L1.mlp", unit_of).any()
    assert not groups_at(model, "L1.mlp", unit_of).any()
