"""Unit counts over streams in parts, from tables or lists of uses, equal `joint_counts` and loops."""

import copy

import pytest
import torch

from slms.metrics import units as module
from slms.metrics.functional import (
    document_specialization_index,
    joint_choices,
    joint_counts,
    specialization_index,
)
from slms.metrics.units import (
    N_GROUPS,
    N_GROUPS_GIVEN_TOKEN,
    CountLayout,
    Family,
    UnitCounts,
    Uses,
    ambiguous_tokens,
)

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


def as_table(on):
    return on


def as_list(on):
    return Uses(*on.nonzero().T)


WAYS = pytest.mark.parametrize("way", [as_table, as_list])


def counted(parts, strata=None, way=as_table, kept=None):
    metric = UnitCounts(layout(torch.zeros(V).long() if strata is None else strata), 70, together=True)
    for on, tokens, classes, docs in parts:
        classes = classes | {"pos_given": classes["pos"]}
        metric.update(way(on), metric.layout.cells(tokens, classes, docs, kept))
    return metric


def cut(whole, *at):
    on, tokens, classes, docs = whole
    cuts = [slice(a, b) for a, b in zip((0, *at), (*at, len(on)), strict=True)]
    return [(on[s], tokens[s], {k: c[s] for k, c in classes.items()}, docs[s]) for s in cuts]


def states(metric):
    return {name: getattr(metric, name) for name in metric._defaults}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@WAYS
def test_tables_are_those_of_joint_counts_in_any_parts(way):
    on, tokens, classes, docs = whole = stream()
    strata, _ = ambiguous_tokens(tokens, classes["pos"], 5, V, most=4)
    metric = counted([whole], strata, way)
    assert same(states(metric), states(counted(cut(whole, 1, 400), strata, way)))
    for family, n_classes in (("pos", 5), ("domain", 3)):
        counts, totals = joint_counts(on, classes[family], n_classes, docs % N_GROUPS, N_GROUPS)
        assert torch.equal(metric.tables(family)[0], counts.int()) and torch.equal(metric.tables(family)[1], totals)
    stratum = strata[tokens]
    known = torch.where(stratum >= 0, classes["pos"], -1)
    groups = (docs % N_GROUPS_GIVEN_TOKEN) * 4 + stratum.clamp(min=0)
    counts, totals = joint_counts(on, known, 5, groups, N_GROUPS_GIVEN_TOKEN * 4)
    assert torch.equal(metric.tables("pos_given")[0], counts.int().unflatten(0, (N_GROUPS_GIVEN_TOKEN, 4)))
    assert torch.equal(metric.tables("pos_given")[1], totals.unflatten(0, (N_GROUPS_GIVEN_TOKEN, 4)))
    assert torch.equal(metric.uses, on.sum(0)) and metric.n_tokens == 900
    assert torch.equal(metric.together, joint_choices(on))


@pytest.mark.parametrize("pairs", [0, 100], ids=["none", "few"])
def test_many_pairs_of_uses_are_counted_by_a_product(pairs, monkeypatch):
    whole = stream()
    listed = counted([whole], way=as_list)
    monkeypatch.setattr(module, "_MOST_PAIRS", pairs)
    assert same(states(listed), states(counted([whole], way=as_list)))


@WAYS
def test_tokens_that_do_not_count_are_left_out(way):
    on, tokens, classes, docs = whole = stream()
    kept = torch.arange(900) % 3 > 0
    rest = (on[kept], tokens[kept], {k: c[kept] for k, c in classes.items()}, docs[kept])
    assert same(states(counted([whole], way=way, kept=kept)), states(counted([rest], way=way)))


def test_halves_merged_and_processes_summed_are_the_whole():
    """The reduction that torchmetrics applies to gathered states, without starting processes."""
    whole, parts = counted([stream()]), cut(stream(), 300)
    left, right = counted(parts[:1]), counted(parts[1:])
    ranks = copy.deepcopy(left)
    for name, reduce in ranks._reductions.items():
        setattr(ranks, name, reduce(torch.stack([getattr(rank, name) for rank in (left, right)])))
    left.merge_state(right)
    assert same(states(whole), states(left)) and same(states(whole), states(ranks))


def test_memory_is_constant_and_reset_forgets():
    metric = counted([stream()])
    size = sum(part.numel() for part in states(metric).values())
    on, tokens, classes, docs = stream(seed=1)
    metric.update(on, metric.layout.cells(tokens, classes | {"pos_given": classes["pos"]}, docs))
    assert size == sum(part.numel() for part in states(metric).values())
    metric.reset()
    assert all(not part.any() for part in states(metric).values())


def test_scores_are_the_specialization_index():
    on, tokens, classes, docs = stream()
    metric = counted([(on, tokens, classes, docs)], ambiguous_tokens(tokens, classes["pos"], 5, V)[0])
    tables = joint_counts(on, classes["pos"], 5, docs % N_GROUPS, N_GROUPS)
    expected = specialization_index(*tables, joint_choices(on[classes["pos"] >= 0]))
    together, sampled = metric.score("pos"), metric.score("pos", sample=on)
    assert together.value == sampled.value == pytest.approx(expected.value)
    assert together.z == pytest.approx(expected.z, rel=0.1) and sampled.z == pytest.approx(expected.z, rel=0.1)
    assert abs(metric.score("domain").z) < 4 and sampled.z > 20
    assert list(metric.compute()) == ["pos", "domain", "pos_given"]


def test_of_many_units_only_each_has_a_null(monkeypatch):
    monkeypatch.setattr(module, "MOST_TOGETHER", 69)
    score = counted([stream()]).score("pos")
    assert torch.tensor([score.z, score.null_sd]).isnan().all() and score.units_z.isfinite().all()


def test_labels_of_documents_are_judged_by_documents():
    """Pathways that follow the document, and labels of documents that mean nothing: structure under tokens only."""
    draw = torch.Generator().manual_seed(0)
    documents = torch.arange(320).repeat_interleave(40)
    favourite = torch.randint(0, 4, (320,), generator=draw)[documents]
    label = torch.randint(0, 8, (320,), generator=draw)[documents]
    noise = torch.rand(len(documents), 4, generator=draw)
    best = (noise + 0.5 * (favourite[:, None] == torch.arange(4))).argmax(1)
    on = torch.nn.functional.one_hot(best, 4).bool()
    z = {}
    for of_documents in (False, True):
        metric = UnitCounts(CountLayout({"domain": Family(8, of_documents)}), 4, together=True)
        metric.update(on, metric.layout.cells(documents, {"domain": label}, documents))
        z[of_documents] = metric.score("domain").z
    assert z[False] > 10 and abs(z[True]) < 4
    assert z[True] == document_specialization_index(*joint_counts(on, label, 8, documents % 16, 16)).z


def test_a_unit_is_counted_with_a_null_of_few_sampled_tokens():
    """Independent units: the null sd from a sample is that of independent units, whatever the sample's size."""
    g = torch.Generator().manual_seed(3)
    on, classes = torch.rand(4000, 300, generator=g) < 0.1, torch.randint(0, 4, (4000,), generator=g)
    tables = joint_counts(on, classes, 4)
    alone = specialization_index(*tables).null_sd
    for n in (100, 500, 4000):
        sampled = specialization_index(*tables, joint_choices(on[:n]), n).null_sd
        assert sampled == pytest.approx(alone, rel=0.1)


def test_strata_are_the_tokens_of_several_classes():
    tokens = torch.tensor([0] * 10 + [1] * 10 + [2] * 4 + [5] * 3)
    classes = torch.tensor([0] * 10 + [0, 1] * 5 + [0, 1, 0, 1] + [-1] * 3)
    strata, share = ambiguous_tokens(tokens, classes, 2, n_ids=8, most=1)
    assert strata.tolist() == [-1, 0] + [-1] * 6 and share == pytest.approx(10 / 14)
    assert ambiguous_tokens(tokens, torch.zeros(27).long(), 2, 8) == (pytest.approx(torch.full((8,), -1)), 0.0)


def test_bad_input_is_named():
    _, tokens, classes, docs = stream()
    metric = UnitCounts(CountLayout({"pos": Family(5)}), 70)
    with pytest.raises(ValueError, match="must be bool"):
        metric.update(torch.ones(900, 70), metric.layout.cells(tokens, {"pos": classes["pos"]}, docs))
    with pytest.raises(ValueError, match="must be the families"):
        metric.layout.cells(tokens, classes, docs)
