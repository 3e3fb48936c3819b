"""A text's tokens are counted by the right classes, and the SI given the token follows its definition."""

import numpy as np
import pytest
import torch

from slms.data.text import Blocks
from slms.measure.classes import (
    GIVEN_TOKEN,
    TOKEN,
    TextClasses,
    distinctive,
    labels_of,
    preferred_class,
    preferred_classes,
)
from slms.metrics.functional import joint_counts, specialization_index
from slms.metrics.units import N_GROUPS_GIVEN_TOKEN, UnitCounts

NAMES = {"pos": ("noun", "verb", "other"), "fixed": ("even", "odd")}


@pytest.fixture(scope="module")
def blocks():
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 15, (20, 16))
    labels = {"pos": rng.integers(-1, 3, (20, 16)).astype(np.int16), "fixed": (ids % 2).astype(np.int16)}
    documents = np.arange(320).reshape(20, 16) // 10
    documents[:, 14:] = -1
    return Blocks(ids.astype(np.uint16), documents.astype(np.int32), labels, NAMES)


def batch_of(blocks):
    columns = {"input_ids": blocks.input_ids, "doc_ids": blocks.doc_ids} | {
        f"labels_{name}": labels for name, labels in blocks.labels.items()
    }
    return {name: torch.from_numpy(column.astype("int64")) for name, column in columns.items()}


def test_pathways_and_other_units_share_one_definition_of_si_given_the_token(blocks):
    """I(U; C | token) over the tokens whose class varies most (all twelve here), in eight groups of documents."""
    classes, batch = TextClasses(blocks, given_token=["pos"], tokens=True), batch_of(blocks)
    on = torch.rand(320, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    real = batch["doc_ids"].flatten() >= 0
    counts = UnitCounts(classes.layout, 5, together=True)
    counts.update(on, classes.cells(batch, real))
    pos, ids, documents = (batch[name].flatten()[real] for name in ("labels_pos", "input_ids", "doc_ids"))
    table = joint_counts(on[real], pos, 3, documents % N_GROUPS_GIVEN_TOKEN * 12 + ids - 3, N_GROUPS_GIVEN_TOKEN * 12)
    wanted = specialization_index(*(part.unflatten(0, (N_GROUPS_GIVEN_TOKEN, 12)) for part in table))
    assert counts.score("pos" + GIVEN_TOKEN).value == pytest.approx(wanted.value)
    assert classes.coverage["pos" + GIVEN_TOKEN] == pytest.approx(1.0)


def test_a_family_that_the_token_decides_is_not_counted_given_the_token(blocks):
    classes = TextClasses(blocks, given_token=["fixed"])
    assert list(classes.layout.families) == ["pos", "fixed"]
    assert classes.coverage["fixed"] == 1.0
    assert classes.coverage["pos"] == pytest.approx((blocks.labels["pos"][:, :14] >= 0).mean())


def test_tokens_are_a_family_of_those_that_occur(blocks):
    classes = TextClasses(blocks, families=[], tokens=True)
    assert classes.token_ids.tolist() == list(range(3, 15)) and classes.layout.families[TOKEN].n_classes == 12
    batch = batch_of(blocks) | {"input_ids": torch.full((1, 2), 99), "doc_ids": torch.zeros(1, 2).long()}
    assert classes.cells(batch).of_token.tolist() == [[-1, -1]]


@pytest.mark.parametrize("flag", ["families", "given_token"])
def test_unknown_families_are_refused(blocks, flag):
    with pytest.raises(ValueError, match=f"--{flag} task: this text has no such labels; it has pos, fixed"):
        TextClasses(blocks, **{flag: ["task"]})


def test_coverage_and_shares_of_labels(blocks):
    found = labels_of(blocks)["pos"]
    known = blocks.labels["pos"][blocks.labels["pos"] >= 0]
    assert found.coverage == pytest.approx((blocks.labels["pos"] >= 0).mean())
    assert list(found.share.values()) == pytest.approx([(known == i).mean() for i in range(3)])


def test_the_preferred_class_is_the_one_that_sets_a_unit_apart():
    counts = torch.tensor([[60, 40, 0], [0, 0, 0], [70, 25, 5]])
    totals = torch.tensor([700, 250, 50])
    assert preferred_classes(counts, totals).tolist()[:2] == [1, -1]


def test_all_say_the_same_of_what_sets_a_unit_apart():
    """By the definition, Σ p log(p / q): of class numbers, of names, and of several at once."""
    here, overall = torch.rand(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.01
    p, q = here / here.sum(), overall / overall.sum()
    gains = [float(a * (a / b).log()) for a, b in zip(p, q, strict=True)]
    best = sorted(range(7), key=lambda i: -gains[i])
    counts, totals = 1000 * here, 1000 * overall
    assert distinctive(counts, totals, 7) == [i for i in best if gains[i] > 0]
    assert distinctive(counts, totals, 1) == best[:1] == preferred_classes(counts[None], totals).tolist()
    names = dict(enumerate("abcdefg"))
    assert preferred_class(*({names[i]: float(x[i]) for i in range(7)} for x in (p, q))) == names[best[0]]
