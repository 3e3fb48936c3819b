"""Count tables against direct loops."""

import pytest
import torch

from slms.metrics.functional import joint_choices, joint_counts


def sample(n=97, u=5, c=7, g=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    units = torch.rand(n, u, generator=generator) < 0.4
    classes = torch.randint(-1, c, (n,), generator=generator)
    groups = torch.randint(0, g, (n,), generator=generator)
    return units, classes, groups


def test_counts_are_those_of_a_loop():
    units, classes, groups = sample()
    counts, totals = joint_counts(units, classes, 7, groups, 3)
    expected, expected_totals = torch.zeros(3, 5, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.int64)
    for unit, c, g in zip(units, classes.tolist(), groups.tolist(), strict=True):
        if c >= 0:
            expected_totals[g, c] += 1
            for u in range(5):
                expected[g, u, c] += int(unit[u])
    assert counts.dtype == totals.dtype == torch.int64
    assert torch.equal(counts, expected) and torch.equal(totals, expected_totals)


@pytest.mark.parametrize("n", [0, 1, 97])
def test_tables_of_parts_sum_to_the_table_of_the_whole(n):
    units, classes, groups = sample(n)
    whole = joint_counts(units, classes, 7, groups, 3)
    out = (torch.zeros(3, 5, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.int64))
    for part in (slice(0, n // 3), slice(n // 3, n)):
        joint_counts(units[part], classes[part], 7, groups[part], 3, out=out)
    assert all(torch.equal(a, b) for a, b in zip(whole, out, strict=True))


def test_without_groups_there_is_one():
    units, classes, groups = sample()
    counts, totals = joint_counts(units, classes, 7)
    grouped = joint_counts(units, classes, 7, groups, 3)
    assert torch.equal(counts[0], grouped[0].sum(0)) and torch.equal(totals[0], grouped[1].sum(0))


def test_joint_choices_are_those_of_a_loop():
    units, _, _ = sample()
    expected = [[int((units[:, i] & units[:, j]).sum()) for j in range(5)] for i in range(5)]
    assert joint_choices(units).tolist() == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.ones(3, 2), torch.zeros(3).long(), 2), "units is torch.float32"),
        ((torch.ones(3, 2).bool(), torch.zeros(4).long(), 2), "classes has shape"),
        ((torch.ones(3, 2).bool(), torch.tensor([0, 1, 2]), 2), "classes contains 2; it must be below n_classes"),
        ((torch.ones(3, 2).bool(), torch.zeros(3).long(), 2, torch.zeros(2).long()), "groups has shape"),
        ((torch.ones(3, 2).bool(), torch.zeros(3).long(), 2, torch.tensor([0, 1, 4]), 4), "groups contains 4"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        joint_counts(*arguments)


def test_many_units_are_counted_like_few():
    """Both ways to count, on either side of 64 units, and added to earlier counts."""
    units, classes, groups = sample(u=70)
    out = tuple(table.clone() for table in joint_counts(units, classes, 7, groups, 3))
    counts, totals = joint_counts(units, classes, 7, groups, 3, out=out)
    for part in (slice(0, 40), slice(40, 70)):
        few, few_totals = joint_counts(units[:, part], classes, 7, groups, 3)
        assert torch.equal(counts[:, part], 2 * few) and torch.equal(totals, 2 * few_totals)
