"""Choices without the best pathways, and their losses, against loops over tokens and whole passes of the model."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

import slms
from slms.data.text import Blocks
from slms.measure.passes import token_nll
from slms.measure.redundancy import Losses, disabled_rows, loss_row, ranks, within, without_best, without_random
from slms.metrics.functional.intervals import paired_difference, student_t
from slms.models.routed import routed_modules, set_k
from tests.tiny import tiny_config

N, P, K = 50, 7, 3


@pytest.fixture
def scores():
    scores = torch.rand(N, P, generator=torch.Generator().manual_seed(0))
    return scores, torch.zeros(N, P, dtype=torch.bool).scatter_(1, scores.topk(K).indices, True)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_without_the_best_the_next_best_run(scores, m):
    scores, chosen = scores
    for replaced in (True, False):
        found = without_best(scores, chosen, m, replaced)
        for row, order in zip(found, scores.argsort(1, descending=True).tolist(), strict=True):
            wanted = order[m : m + K] if replaced else order[m:K]
            assert sorted(row.nonzero()[:, 0].tolist()) == sorted(wanted)
    assert ranks(scores, chosen).sort(1).values.eq(torch.arange(P)).all()


def test_shared_pathways_stay_and_do_not_compete(scores):
    scores, chosen = scores
    scores = torch.cat([torch.full((N, 1), -torch.inf), scores], 1)
    chosen = torch.cat([torch.ones(N, 1, dtype=torch.bool), chosen], 1)
    generator = torch.Generator().manual_seed(1)
    for found in (
        without_best(scores, chosen, 2, True, 1),
        without_random(scores, chosen, 2, True, 1, generator),
        within(scores, chosen, torch.ones(P + 1, dtype=torch.bool), 1),
    ):
        assert found[:, 0].all() and (found.sum(1) == K + 1).all()


def test_random_ones_are_lost_alike(scores):
    scores, chosen = (x[:1].expand(3000, -1) for x in scores)
    generator = torch.Generator().manual_seed(2)
    fewer = without_random(scores, chosen, 1, False, 0, generator)
    assert (fewer.sum(1) == K - 1).all() and not (fewer & ~chosen).any()
    lost = (chosen & ~fewer).double().mean(0)[chosen[0]]
    assert (lost - 1 / K).abs().max() < 0.04
    swapped = without_random(scores, chosen, 2, True, 0, generator)
    best_others = scores[0].masked_fill(chosen[0], -1).topk(2).indices
    assert (swapped.sum(1) == K).all() and swapped[:, best_others].all()


def test_within_a_subset_the_best_of_it_run(scores):
    scores, chosen = scores
    kept = torch.tensor([True, False, True, False, True, False, True])
    found = within(scores, chosen, kept)
    for row, values in zip(found, scores, strict=True):
        wanted = sorted(range(P), key=lambda p: -float(values[p]) if kept[p] else 9.0)[:K]
        assert sorted(row.nonzero()[:, 0].tolist()) == sorted(wanted)
    two = torch.arange(P) < 2
    assert within(scores, chosen, two).eq(two).all(), "of too few all run"


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 40, (12, 16))
    documents = np.sort(rng.integers(0, 6, 12 * 16)).reshape(12, 16)
    documents[-1, 8:] = -1  # padding
    torch.manual_seed(0)
    dense = GPTNeoForCausalLM(tiny_config(50, intermediate_size=20, max_position_embeddings=32)).eval()
    for parameter in dense.parameters():
        parameter.data.mul_(4)
    routing = slms.RoutingConfig(n_pathways=5, k=2, every_n_layers=1, gate="unit")
    labels = {"domain": (documents % 2).astype(np.int16)}
    blocks = Blocks(ids.astype(np.uint16), documents, labels, {"domain": ("even", "odd")})
    return slms.route(dense, routing, torch.from_numpy(ids)).eval(), blocks


def brute(net, blocks, documents) -> float:
    with torch.no_grad():
        nll = token_nll(net, torch.from_numpy(blocks.input_ids.astype("int64")))
    return float(nll[torch.from_numpy(np.isin(blocks.doc_ids[:, 1:], documents))].mean())


def test_losses_are_those_of_the_changed_model(model):
    net, blocks = model
    rows = {row.family: row for row in disabled_rows(Losses(net, blocks, 5), [1, 3, 9])}
    assert list(rows) == ["own", "all", "random", "1 replaced", "3 replaced", "1 fewer"], "as far as the routing allows"
    everything = range(6)
    assert rows["own"].value == pytest.approx(brute(net, blocks, everything), rel=1e-5)
    set_k(net, 5)
    assert rows["all"].value == pytest.approx(brute(net, blocks, everything), rel=1e-5)
    set_k(net, 2)
    assert rows["all"].control == rows["own"].value
    assert rows["all"].difference == pytest.approx(rows["all"].value - rows["own"].value)
    assert all(router.chooser is None for router in (m.router for m in routed_modules(net).values()))


def test_documents_that_count_are_read_alone(model):
    net, blocks = model
    mine = torch.tensor([False, True, False, False, True, False])
    loss = Losses(net, blocks, 5).of("own", None, mine)
    assert float(loss.nll.sum() / loss.tokens.sum()) == pytest.approx(brute(net, blocks, [1, 4]), rel=1e-5)
    assert loss.tokens.nonzero()[:, 0].tolist() == [1, 4]


def test_the_interval_joins_documents_and_controls(model):
    net, blocks = model
    losses = Losses(net, blocks, 5)
    own = losses.of("own", None)
    controls = [losses.of(f"{p}", lambda *a, p=p: torch.arange(5).eq(p).expand(len(a[1]), 5)) for p in range(3)]
    row = loss_row("x", "y", own, controls)
    values = torch.stack([c.nll.sum() / c.tokens.sum() for c in controls])
    apart = paired_difference(own.nll, torch.stack([c.nll for c in controls]).mean(0), own.tokens)
    spread = student_t(2) * float(values.std()) * (4 / 3) ** 0.5
    assert row.control_sd == pytest.approx(float(values.std())) and row.control == pytest.approx(float(values.mean()))
    assert row.difference_high - row.difference == pytest.approx(((apart.high - apart.value) ** 2 + spread**2) ** 0.5)


def test_models_with_shared_heads_are_refused():
    config = slms.RoutingConfig(target="attention", k_heads=2, n_shared_heads=1, layers=[1], router="linear")
    routed = slms.route(GPTNeoForCausalLM(tiny_config(61)), config, torch.randint(0, 61, (4, 16)))
    with pytest.raises(ValueError, match=r"L1\.attn has shared heads \(`routing\.n_shared_heads`\)"):
        Losses(routed, Blocks(np.zeros((1, 16)), np.zeros((1, 16)), {}, {}), 1)
