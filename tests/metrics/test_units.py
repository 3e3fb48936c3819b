"""Unit counts against `joint_counts` and loops, over streams in parts."""

import pytest
import torch

from slms.metrics.functional import joint_choices, joint_counts, specialization_index
from slms.metrics.units import N_GROUPS, N_GROUPS_GIVEN_TOKEN, CountLayout, Family, UnitCounts, telling_strata

V = 12


def stream(n=900, u=70, seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens, docs = torch.randint(0, V, (n,), generator=g), torch.arange(n) // 25
    classes = {"pos": torch.randint(-1, 5, (n,), generator=g), "domain": docs % 3}
    on = torch.rand(n, u, generator=g) < torch.where(classes["pos"] == 2, 0.5, 0.1)[:, None]
    return on, tokens, classes, docs


def layout(strata):
    return CountLayout(
        {"pos": Family(5), "domain": Family(3, of_documents=True), "pos_given": Family(5, strata=strata)}
    )


def counted(parts, strata):
    metric = UnitCounts(layout(strata), 70)
    for on, tokens, classes, docs in parts:
        classes = classes | {"pos_given": classes["pos"]}
        metric.update(on, metric.layout.rows(tokens, classes, docs))
    return metric


def test_tables_are_those_of_joint_counts_in_any_parts():
    on, tokens, classes, docs = stream()
    strata, _ = telling_strata(tokens, classes["pos"], 5, V, most=4)
    whole = counted([(on, tokens, classes, docs)], strata)
    cuts = [slice(0, 1), slice(1, 400), slice(400, 900)]
    parts = counted([(on[s], tokens[s], {k: c[s] for k, c in classes.items()}, docs[s]) for s in cuts], strata)
    assert torch.equal(whole.counts, parts.counts) and torch.equal(whole.totals, parts.totals)
    for family, n_classes in (("pos", 5), ("domain", 3)):
        counts, totals = joint_counts(on, classes[family], n_classes, docs % N_GROUPS, N_GROUPS)
        assert torch.equal(whole.tables(family)[0], counts.int()) and torch.equal(whole.tables(family)[1], totals)
    stratum = strata[tokens]
    known = torch.where(stratum >= 0, classes["pos"], -1)
    groups = (docs % N_GROUPS_GIVEN_TOKEN) * 4 + stratum.clamp(min=0)
    counts, totals = joint_counts(on, known, 5, groups, N_GROUPS_GIVEN_TOKEN * 4)
    assert torch.equal(whole.tables("pos_given")[0], counts.int().unflatten(0, (N_GROUPS_GIVEN_TOKEN, 4)))
    assert torch.equal(whole.tables("pos_given")[1], totals.unflatten(0, (N_GROUPS_GIVEN_TOKEN, 4)))


def test_scores_are_the_specialization_index():
    on, tokens, classes, docs = stream()
    metric = counted([(on, tokens, classes, docs)], telling_strata(tokens, classes["pos"], 5, V)[0])
    tables = joint_counts(on, classes["pos"], 5, docs % N_GROUPS, N_GROUPS)
    expected = specialization_index(*tables, joint_choices(on[classes["pos"] >= 0]))
    found = metric.scores("pos", sample=on)
    assert found.value == pytest.approx(expected.value) and found.z == pytest.approx(expected.z, rel=0.1)
    assert metric.compute()["pos"].z > found.z, "units that go together have a wider null"
    assert abs(metric.scores("domain").z) < 4 and found.z > 20


def test_a_unit_is_counted_with_a_null_of_few_sampled_tokens():
    """Independent units: the null sd from a sample is that of independent units, whatever the sample's size."""
    g = torch.Generator().manual_seed(3)
    on, classes = torch.rand(4000, 300, generator=g) < 0.1, torch.randint(0, 4, (4000,), generator=g)
    tables = joint_counts(on, classes, 4)
    alone = specialization_index(*tables).null_sd
    for n in (100, 500, 4000):
        sampled = specialization_index(*tables, joint_choices(on[:n]), n).null_sd
        assert sampled == pytest.approx(alone, rel=0.1)


def test_telling_strata_are_the_tokens_of_several_classes():
    tokens = torch.tensor([0] * 10 + [1] * 10 + [2] * 4 + [5] * 3)
    classes = torch.tensor([0] * 10 + [0, 1] * 5 + [0, 1, 0, 1] + [-1] * 3)
    strata, share = telling_strata(tokens, classes, 2, n_ids=8, most=1)
    assert strata.tolist() == [-1, 0] + [-1] * 6 and share == pytest.approx(10 / 14)
    assert telling_strata(tokens, torch.zeros(27).long(), 2, 8) == (pytest.approx(torch.full((8,), -1)), 0.0)


def test_wrong_shapes_are_refused():
    metric = UnitCounts(CountLayout({"pos": Family(5)}), 70)
    with pytest.raises(ValueError, match="must be bool"):
        metric.update(torch.ones(900, 70), metric.layout.rows(*stream()[1:3], stream()[3]))
