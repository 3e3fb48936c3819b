"""The counting metric against the pure functions, and against itself in halves."""

import copy

import pytest
import torch

from slms.metrics.functional import joint_choices, joint_counts, purity, specialization_index, utilization
from slms.metrics.pathways import PathwayCounts

FAMILIES = {"token": 40, "pos": 5}


def batches(n_batches=4, n=150, p=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    for batch in range(n_batches):
        classes = {name: torch.randint(-1, c, (n,), generator=g) for name, c in FAMILIES.items()}
        chosen = torch.rand(n, p, generator=g) < 0.3
        yield chosen, classes, batch * 10 + torch.arange(n) // 20


def filled(parts):
    metric = PathwayCounts(6, FAMILIES, given_token=("pos",))
    for part in parts:
        metric.update(*part)
    return metric


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def test_scores_are_those_of_the_functions_on_all_tokens():
    parts = list(batches())
    scores = filled(parts).compute()
    chosen = torch.cat([part[0] for part in parts])
    pos = torch.cat([part[1]["pos"] for part in parts])
    token = torch.cat([part[1]["token"] for part in parts])
    documents = torch.cat([part[2] for part in parts])
    counts, totals = joint_counts(chosen, pos, 5, documents % 16, 16)
    together = joint_choices(chosen).double() * (totals.sum() / len(pos))
    assert same(scores.families["pos"].purity, purity(counts, totals, together))
    assert same(scores.families["pos"].specialization, specialization_index(counts, totals, together))
    assert same(scores.utilization, utilization(chosen.sum(0)))
    known = (pos >= 0) & (token >= 0)
    table = joint_counts(chosen[known], pos[known], 5, (documents[known] % 4) * 40 + token[known], 160)
    expected = specialization_index(*(part.unflatten(0, (4, 40)) for part in table))
    assert scores.families["pos"].given_token.value == pytest.approx(expected.value)
    assert scores.families["token"].given_token is None


def test_halves_merged_are_exactly_the_whole():
    parts = list(batches())
    whole, left, right = filled(parts), filled(parts[:1]), filled(parts[1:])
    left.merge_state(right)
    for name in whole._defaults:
        assert torch.equal(getattr(whole, name), getattr(left, name)), name
    assert same(whole.compute(), left.compute())


def test_two_processes_sum_to_the_whole():
    """The reduction that torchmetrics applies to gathered states, without starting processes."""
    parts = list(batches())
    whole, ranks = filled(parts), [filled(parts[::2]), filled(parts[1::2])]
    merged = copy.deepcopy(ranks[0])
    for name, reduce in merged._reductions.items():
        setattr(merged, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
    assert same(whole.compute(), merged.compute())


def test_padding_is_left_out():
    chosen, classes, documents = next(batches(1))
    mask = torch.arange(150) % 3 > 0
    masked, kept = PathwayCounts(6, FAMILIES), PathwayCounts(6, FAMILIES)
    masked.update(chosen, classes, documents, mask)
    kept.update(chosen[mask], {name: ids[mask] for name, ids in classes.items()}, documents[mask])
    assert same(masked.compute(), kept.compute()) and int(masked.n_tokens) == int(mask.sum())


def test_reset_and_constant_memory():
    metric = filled(batches(1))
    size = sum(getattr(metric, name).numel() for name in metric._defaults)
    for part in batches(3, seed=1):
        metric.update(*part)
    assert size == sum(getattr(metric, name).numel() for name in metric._defaults)
    metric.reset()
    for part in batches(1):
        metric.update(*part)
    assert same(metric.compute(), filled(batches(1)).compute())


def test_labels_of_documents_are_judged_by_documents():
    """Pathways that follow the document, and labels of documents that mean nothing: structure under tokens only."""
    draw = torch.Generator().manual_seed(0)
    documents = torch.arange(320).repeat_interleave(40)
    favourite = torch.randint(0, 4, (320,), generator=draw)[documents]
    label = torch.randint(0, 8, (320,), generator=draw)[documents]
    noise = torch.rand(len(documents), 4, generator=draw)
    chosen = torch.zeros_like(noise).scatter(
        1, (noise + 0.5 * (favourite[:, None] == torch.arange(4))).argmax(1)[:, None], 1
    )
    z = {}
    for of_documents in ((), ("domain",)):
        metric = PathwayCounts(4, {"domain": 8}, of_documents=of_documents)
        metric.update(chosen.bool(), {"domain": label}, documents)
        z[of_documents] = float(metric.compute().families["domain"].specialization.z)
    assert z[()] > 10 and abs(z[("domain",)]) < 4


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="must be the families"):
        PathwayCounts(6, FAMILIES).update(torch.ones(2, 6).bool(), {"token": torch.zeros(2).long()}, torch.zeros(2))
    with pytest.raises(ValueError, match="must then hold 'token'"):
        PathwayCounts(6, {"pos": 5}, given_token=("pos",))
