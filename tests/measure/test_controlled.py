"""A router that reads classes is above its controls, and a random one is not."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

from slms.data.text import Blocks
from slms.measure import pathways
from slms.measure.classes import TextClasses
from slms.measure.controlled import (
    ControlOptions,
    Router,
    Sample,
    compare_router,
    measure_controls,
    spread,
)
from slms.measure.controls import CONTROLS, RANDOM_ROUTER, fit_control
from slms.measure.evidence import Sampled
from slms.measure.passes import predicted_tokens
from slms.measure.rows import MODEL
from slms.models.cut import cut
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig
from tests.tiny import tiny_config

N, D, CLASSES = 3000, 12, 4


@pytest.fixture(scope="module")
def planted():
    """A text of 4 classes in 40 documents; the inputs tell the class in dimensions 0 to 3 among eight of noise."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, N)
    ids = (classes + CLASSES * rng.integers(0, 10, N)).astype(np.uint16)[None]
    documents = np.sort(rng.integers(0, 40, N))[None]
    blocks = Blocks(ids, documents, {"pos": classes[None].astype(np.int16)}, {"pos": tuple("abcd")})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)
    x[:, :CLASSES] += 2 * torch.nn.functional.one_hot(torch.from_numpy(classes), CLASSES)
    config = RoutingConfig(n_pathways=CLASSES, k=1, router="linear")
    mlp = RoutedMLP(D, 16, config, activation="gelu", layer_index=0)
    sample = Sample.of(blocks, TextClasses(blocks, tokens=True), torch.device("cpu"), torch.zeros(N))
    return mlp, x, torch.from_numpy(classes), sample


def _apart(mlp, x, chosen, sample, seeds=4):
    found = compare_router("L0.mlp", Router(mlp, x, chosen), sample, seeds)
    return {(r.metric, r.family): r for r in found.rows[RANDOM_ROUTER]}, found


def test_a_router_that_reads_classes_is_above_random_ones(planted):
    mlp, x, classes, sample = planted
    rows, found = _apart(mlp, x, torch.nn.functional.one_hot(classes, CLASSES).bool(), sample)
    for key in (("purity", ""), ("si", "pos")):
        row = rows[key]
        assert row.difference_low > 0.1 and row.difference_low < row.difference < row.difference_high
        assert row.difference == pytest.approx(found.own[key].value - row.value)
    assert max(found.errors.values()) <= 0.02


@pytest.mark.parametrize("seed", [100, 101])
def test_a_random_router_is_not_above_random_ones(planted, seed):
    """How often the interval holds 0 is tested where it is cheap (`beyond_control`)."""
    mlp, x, _, sample = planted
    even = torch.nn.functional.one_hot(torch.arange(N) % CLASSES, CLASSES).bool()
    chosen = fit_control(CONTROLS[RANDOM_ROUTER], mlp, x, even, seed).choose(x, even)
    rows, _ = _apart(mlp, x, chosen, sample, seeds=6)
    for key in (("purity", ""), ("si", "pos")):
        assert rows[key].difference_low < 0 < rows[key].difference_high


def test_every_control_of_every_place(routed_with_text):
    net, blocks = routed_with_text
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = measure_controls(net, blocks, 7, options=ControlOptions(seeds=2))
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(mlp.router.chooser is None for mlp in routed_modules(net).values())
    assert list(found.controls) == list(CONTROLS)
    for control in found.controls.values():
        assert (control.seeds, control.tokens) == (2, 24 * 16 - 8) and control.load_error <= 0.02
        keys = {(r.place, r.metric, r.family) for r in control.rows}
        assert {
            (p, m, f) for p in routed_modules(net) for m, f in (("purity", ""), ("si", "pos"), ("oracle_overlap", ""))
        } <= keys
    for family in ("input", "next", "predicted"):
        keys = {(r.place, r.metric, r.family) for r in found.controls[RANDOM_ROUTER].rows}
        assert {(p, "vocabulary", family) for p in routed_modules(net)} <= keys
    overlaps = [row for row in found.rows if row.metric == "oracle_overlap"]
    assert [row.place for row in overlaps] == list(routed_modules(net))
    assert all(0 < row.low <= row.value <= row.high and row.value <= 1 and row.ceiling == 1 for row in overlaps)
    assert [row.key for row in found.rows if row.place == MODEL] == [
        (MODEL, "choice_nats", "oracle"),
        (MODEL, "choice_nats", "random_router"),
    ]
    assert measure_controls(net, blocks, 24, options=ControlOptions(seeds=2)) == found  # whatever the batch size
    assert measure_controls(net, blocks, 7, options=ControlOptions(seeds=0)).controls == {}


def test_olmoes_measures_count_what_the_tokens_are(routed_with_text):
    """The tokens of a sample and what follows them, padding left out, against a loop over the blocks."""
    net, blocks = routed_with_text
    predicted = predicted_tokens(net.eval(), blocks, 7)
    sample = Sample.of(blocks, TextClasses(blocks, tokens=True), torch.device("cpu"), predicted)
    read = [(b, t) for b in range(24) for t in range(16) if blocks.doc_ids[b, t] >= 0]
    assert sample.ids["input"].tolist() == [int(blocks.input_ids[at]) for at in read]
    after = [int(blocks.input_ids[b, t + 1]) if t < 15 and blocks.doc_ids[b, t + 1] >= 0 else -1 for b, t in read]
    assert sample.ids["next"].tolist() == after
    with torch.no_grad():
        best = net(torch.from_numpy(blocks.input_ids.astype("int64"))).logits.argmax(-1)
    assert sample.ids["predicted"].tolist() == [int(best[at]) for at in read]
    chosen = torch.arange(len(read))[:, None] % 5 != torch.arange(5)
    sampled = Sampled(chosen, sample.groups, sample.ids, {})
    counts, totals = sampled.counts(sample.ids["next"])
    kinds = sorted(set(after) - {-1})
    group = sample.groups.tolist()
    for column, kind in enumerate(kinds):
        mine = [i for i, x in enumerate(after) if x == kind]
        assert totals[:, column].tolist() == [sum(group[i] == g for i in mine) for g in range(16)]
        assert counts[:, 3, column].tolist() == [sum(group[i] == g and i % 5 != 3 for i in mine) for g in range(16)]
    pairs = sampled.together
    assert int(pairs[2, 0, 1]) == sum(group[i] == 2 and i % 5 not in (0, 1) for i in range(len(read)))


def test_models_without_routers_have_no_controls(routed_with_text):
    _, blocks = routed_with_text
    dense = GPTNeoForCausalLM(tiny_config(50, intermediate_size=20, max_position_embeddings=32))
    small = cut(dense, {0: 5}, torch.from_numpy(blocks.input_ids.astype("int64")))
    assert measure_controls(small, blocks, 8) == ([], {}) == measure_controls(dense, blocks, 8)


def test_a_sample_is_spread_over_the_text(routed_with_text):
    _, blocks = routed_with_text
    part = spread(blocks, 5 * 16 + 3)
    assert part.input_ids.tolist() == blocks.input_ids[[0, 6, 12, 17, 23]].tolist()
    assert len(spread(blocks, 10**9).input_ids) == 24 and len(spread(blocks, 1).input_ids) == 1


def test_fine_units_are_compared_by_losses_alone(routed_with_text, monkeypatch):
    monkeypatch.setattr(pathways, "MOST_BY_CLASS", 4)  # the model has 5 pathways a place
    net, blocks = routed_with_text
    found = measure_controls(net, blocks, 7, options=ControlOptions(seeds=5))
    assert list(found.controls) == [RANDOM_ROUTER] and found.controls[RANDOM_ROUTER].seeds == 3
    assert {row.metric for row in found.controls[RANDOM_ROUTER].rows} == {"oracle_overlap"}
    assert {row.family for row in found.rows if row.metric == "choice_nats"} == {"oracle", "random_router"}
    tables = pathways.measure_pathways(net, None, blocks, 7)
    assert {row.metric for row in tables.rows} >= {"density", "utilization", "max_load"} and not tables.pathways
    assert not {"purity", "entropy", "si"} & {row.metric for row in tables.rows}
