"""Ablation by class equals a model whose neurons are cut out of its weights."""

import copy

import numpy as np
import pytest
import torch

from slms import RoutingConfig, route
from slms.data.text import Blocks
from slms.measure.ablation import ablate, ablation_rows, cells_of, mean_activations, measure_ablation, whole_losses
from slms.measure.passes import token_nll
from slms.models.base import BaseConfig, init_base

T, VOCAB, CLASSES = 12, 40, 3


@pytest.fixture(scope="module")
def model():
    net = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2, vocab=VOCAB))
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net.eval()


@pytest.fixture(scope="module")
def blocks():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (6, T))
    labels = {"kind": rng.integers(-1, CLASSES, ids.shape), "even": ids % 2}
    names = {"kind": ("a", "b", "c"), "even": ("even", "odd")}
    return Blocks(ids.astype(np.uint16), np.arange(6)[:, None].repeat(T, 1), labels, names)


def brute(changed, model, blocks, family: str, c: int) -> float:
    """Summed loss increase of the predicted tokens of one class."""
    ids = torch.from_numpy(blocks.input_ids.astype(np.int64))
    with torch.no_grad():
        rise = token_nll(changed, ids) - token_nll(model, ids)
    return float(rise[torch.from_numpy(blocks.labels[family])[:, 1:] == c].sum())


def test_ablating_equals_cutting_the_rows_out(model, blocks):
    unit_of = torch.arange(32) % 4
    unit_of[5] = -1
    n_classes = {"kind": CLASSES, "even": 2}
    whole = whole_losses(model, blocks, list(n_classes), 3, batch_size=4)
    done = []
    found = ablate(
        model, blocks, "L1.mlp", unit_of, whole, n_classes, "zero", 4, told=lambda name, nats: done.append(name)
    )
    assert done == [f"L1.mlp unit {unit}" for unit in range(4)]
    for unit in range(4):
        cut = copy.deepcopy(model)
        with torch.no_grad():
            cut.transformer.h[1].mlp.c_proj.weight[:, unit_of == unit] = 0
        for family, c in n_classes.items():
            for label in range(c):
                wanted = brute(cut, model, blocks, family, label)
                assert float(found[family].sums[0, :, unit, label].sum()) == pytest.approx(wanted, abs=1e-3)
    known = blocks.labels["kind"][:, 1:] >= 0
    assert found["kind"].totals.sum((1, 2)).tolist() == [known.sum()] * 4
    # permuted labels keep how many tokens each class has and what all tokens lose
    assert torch.equal(found["kind"].totals.sum(1), found["kind"].totals.sum(1)[:1].expand(4, -1))
    assert torch.allclose(found["kind"].sums.sum((1, 3)), found["kind"].sums[:1].sum((1, 3)).expand(4, -1))
    assert not torch.equal(found["kind"].totals[0], found["kind"].totals[1])


def test_the_mean_keeps_what_is_constant(model, blocks):
    mean = mean_activations(model, blocks, "L0.mlp", 4)
    unit_of = torch.zeros(32, dtype=torch.int64)
    whole = whole_losses(model, blocks, ["even"], 1, 4)
    found = ablate(model, blocks, "L0.mlp", unit_of, whole, {"even": 2}, "mean", 4)
    fixed = copy.deepcopy(model)
    with torch.no_grad():
        proj = fixed.transformer.h[0].mlp.c_proj
        proj.bias += proj.weight @ mean
        proj.weight.zero_()
    assert float(found["even"].sums[0, :, 0, 0].sum()) == pytest.approx(
        brute(fixed, model, blocks, "even", 0), abs=1e-3
    )


def test_a_pathway_of_a_routed_model(model, blocks):
    ids = torch.from_numpy(blocks.input_ids.astype(np.int64))
    config = RoutingConfig(n_pathways=4, k=2, every_n_layers=1)
    routed = route(copy.deepcopy(model), config, calibration=ids).eval()
    mlp = routed.transformer.h[1].mlp
    unit_of = torch.full((32,), -1)
    unit_of[mlp.permutation[mlp.offsets[2] : mlp.offsets[3]]] = 0
    whole = whole_losses(routed, blocks, ["even"], 1, 4)
    found = ablate(routed, blocks, "L1.mlp", unit_of, whole, {"even": 2}, "zero", 4)
    cut = copy.deepcopy(routed)
    with torch.no_grad():
        cut.transformer.h[1].mlp.W_out[mlp.offsets[2] : mlp.offsets[3]] = 0
    wanted = brute(cut, routed, blocks, "even", 1)
    assert wanted != 0 and float(found["even"].sums[0, :, 0, 1].sum()) == pytest.approx(wanted, abs=1e-3)


def test_rows_and_cells_are_those_of_the_sums(model, blocks):
    units = ("community", torch.arange(32) // 16)
    whole = whole_losses(model, blocks, ["even"], 3, 4)
    found = measure_ablation(model, blocks, "L1.mlp", units, whole, ["even"], batch_size=4)
    (row,) = ablation_rows([found], seed=5)
    assert row.key == ("L1.mlp", "si_causal", "even") and row.seed == 5
    assert row.n == int(found.classes["even"].totals[0].sum()) == 6 * (T - 1)
    assert (row.value is None) == (not np.isfinite(found.scores["even"].value))
    cells = cells_of([found], blocks.label_names)
    assert [(cell.unit, cell.neurons, cell.label) for cell in cells] == [
        (unit, 16, label) for unit in range(2) for label in ("even", "odd")
    ]
    rise = sum(cell.rise * cell.tokens for cell in cells if cell.unit == 1)
    assert rise == pytest.approx(float(found.classes["even"].sums[0, :, 1].sum()))
