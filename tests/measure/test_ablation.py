"""Ablation by class equals a model whose neurons are cut out of its weights."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slms import RoutingConfig, route
from slms.data.text import Blocks
from slms.measure.ablation import Ablated, ablate, whole_losses
from slms.measure.causal import unit_sets
from slms.measure.journal import Journal
from slms.measure.passes import token_nll
from slms.measure.random_sets import read_neurons
from slms.models.base import BaseConfig, init_base
from slms.models.routed import routed_modules

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


def sums_without(model, blocks, place, unit_of, families: dict, by="zero", n_permutations=3):
    """The class sums of every unit of a place."""
    whole = whole_losses(model, blocks, list(families), n_permutations, batch_size=4)
    mean = read_neurons(model, blocks, [place], 4)[place].mean if by == "mean" else None
    done = []
    names = [f"unit {i}" for i in range(int(unit_of.max()) + 1)]
    ablated = Ablated(model, blocks, place, mean, 4)
    found = ablate(ablated, unit_sets(unit_of), whole, families, names, lambda name, nats: done.append(name))
    assert done == names
    return found


@pytest.mark.parametrize("place", ["L0.mlp", "L1.mlp"])
def test_ablating_equals_cutting_the_rows_out(model, blocks, place):
    unit_of = torch.arange(32) % 4
    unit_of[5] = -1
    n_classes = {"kind": CLASSES, "even": 2}
    found = sums_without(model, blocks, place, unit_of, n_classes)
    for unit in range(4):
        cut = copy.deepcopy(model)
        with torch.no_grad():
            cut.transformer.h[int(place[1])].mlp.c_proj.weight[:, unit_of == unit] = 0
        for family, c in n_classes.items():
            for label in range(c):
                wanted = brute(cut, model, blocks, family, label)
                assert float(found[family].sums[:, unit, label].sum()) == pytest.approx(wanted, abs=1e-3)
    kind = found["kind"]
    known = blocks.labels["kind"][:, 1:] >= 0
    assert kind.totals.sum() == known.sum() and len(kind.totals) == 6
    assert kind.null_totals.sum((1, 2)).tolist() == [known.sum()] * 3
    # permuted labels keep how many tokens each class has and what all tokens of a half lose
    assert torch.equal(kind.null_totals.sum(1), kind.totals.sum(0).expand(3, -1))
    halves = torch.stack([kind.sums[0::2].sum((0, 2)), kind.sums[1::2].sum((0, 2))])
    assert torch.allclose(kind.null_sums.sum(3), halves.expand(3, -1, -1))
    assert not torch.equal(kind.null_totals[0], kind.totals[0::2].sum(0))


def test_the_mean_keeps_what_is_constant(model, blocks):
    mean = read_neurons(model, blocks, ["L0.mlp"], 4)["L0.mlp"].mean
    found = sums_without(model, blocks, "L0.mlp", torch.zeros(32, dtype=torch.int64), {"even": 2}, "mean", 1)
    fixed = copy.deepcopy(model)
    with torch.no_grad():
        proj = fixed.transformer.h[0].mlp.c_proj
        proj.bias += proj.weight @ mean
        proj.weight.zero_()
    wanted = brute(fixed, model, blocks, "even", 0)
    assert float(found["even"].sums[:, 0, 0].sum()) == pytest.approx(wanted, abs=1e-3)


def test_a_pathway_of_a_routed_model(model, blocks):
    ids = torch.from_numpy(blocks.input_ids.astype(np.int64))
    config = RoutingConfig(n_pathways=4, k=2, every_n_layers=1)
    routed = route(copy.deepcopy(model), config, calibration=ids).eval()
    mlp = routed.transformer.h[1].mlp
    unit_of = torch.full((32,), -1)
    unit_of[mlp.permutation[mlp.offsets[2] : mlp.offsets[3]]] = 0
    found = sums_without(routed, blocks, "L1.mlp", unit_of, {"even": 2}, "zero", 1)
    cut = copy.deepcopy(routed)
    with torch.no_grad():
        cut.transformer.h[1].mlp.W_out[mlp.offsets[2] : mlp.offsets[3]] = 0
    wanted = brute(cut, routed, blocks, "even", 1)
    assert wanted != 0 and float(found["even"].sums[:, 0, 1].sum()) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("t", [12, 100])
def test_a_head_is_ablated_where_tokens_run_it(t):
    """It equals the routed model whose columns of W_O are cut out; at 600 tokens skipped heads are really skipped."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, VOCAB, (6, t))
    text = Blocks(ids.astype(np.uint16), np.arange(6)[:, None].repeat(t, 1), {"even": ids % 2}, {"even": ("e", "o")})
    routing = RoutingConfig(target="attention", k_heads=1, router="linear", layers=[1], mean_compensation=True)
    routed = route(LlamaForCausalLM(config), routing, torch.from_numpy(ids)).eval()
    for parameter in routed.parameters():
        parameter.data.mul_(6)
    unit_of = torch.arange(16) // 4
    found = sums_without(routed, text, "L1.attn", unit_of, {"even": 2}, "zero", 1)
    for head in range(4):
        cut = copy.deepcopy(routed)
        with torch.no_grad():
            routed_modules(cut)["L1.attn"].out.weight[:, unit_of == head] = 0
        wanted = brute(cut, routed, text, "even", 1)
        assert wanted != 0 and float(found["even"].sums[:, head, 1].sum()) == pytest.approx(wanted, abs=1e-3)


def test_a_kept_set_is_not_ablated_again(model, blocks, tmp_path):
    whole = whole_losses(model, blocks, ["even"], 1, 4)
    journal = Journal(tmp_path)
    ablated = Ablated(model, blocks, "L1.mlp", None, 4)
    sets = torch.arange(32) // 8 == torch.arange(4)[:, None]
    names = ["a", "b", "c", "d"]
    first = ablate(ablated, sets[:3], whole, {"even": 2}, names[:3], journal=journal, by="zero")
    seen = []
    ablated.without = lambda taken: seen.append(taken) or Ablated.without(ablated, taken)
    second = ablate(ablated, sets, whole, {"even": 2}, names, journal=journal, by="zero")
    assert len(seen) == 1 and torch.equal(seen[0], sets[3])
    assert torch.equal(second["even"].sums[:, :3], first["even"].sums)
    assert ablate(ablated, sets[:0], whole, {"even": 2}, [])["even"].sums.shape == (6, 0, 2)
