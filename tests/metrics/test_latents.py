"""Counts of sparse uses: equal to the dense tables, and the index of a latent that tells the class."""

import pytest
import torch

from slms.metrics import latents as module
from slms.metrics.functional import (
    document_specialization_index,
    joint_choices,
    joint_counts,
    specialization_index,
)
from slms.metrics.latents import LatentCounts

FAMILIES = {"pos": 5, "rare": 3}


@pytest.fixture(scope="module")
def text():
    """Uses of 7 latents at 400 tokens: latent 0 exactly at class 2 of `pos`, latent 6 never, the others by chance."""
    generator = torch.Generator().manual_seed(0)
    classes = {"pos": torch.randint(5, (400,), generator=generator), "rare": torch.full((400,), -1)}
    classes["rare"][::3] = torch.randint(3, (134,), generator=generator)
    on = torch.rand(400, 7, generator=generator) < 0.3
    on[:, 0], on[:, 6] = classes["pos"] == 2, False
    return on, classes, torch.arange(400) // 10 + 1000


def counted(on, classes, documents, parts=3):
    counts = LatentCounts(on.shape[1], FAMILIES)
    for rows in torch.arange(len(on)).tensor_split(parts):
        tokens, latents = on[rows].nonzero().T
        counts.update(tokens, latents, {f: c[rows] for f, c in classes.items()}, documents[rows])
    return counts


@pytest.mark.parametrize("pairs", [2**24, 0], ids=["pairs", "dense"])
def test_tables_are_those_of_the_dense_uses(text, pairs, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PAIRS", pairs)
    on, classes, documents = text
    counts = counted(on, classes, documents)
    assert torch.equal(counts.together, joint_choices(on))
    assert torch.equal(counts.uses, on.sum(0))
    assert counts.n_tokens == 400
    for family, n_classes in FAMILIES.items():
        table, totals = joint_counts(on, classes[family], n_classes, documents % 16, 16)
        assert torch.equal(counts.tables(family)[0], table)
        assert torch.equal(counts.tables(family)[1], totals)


def test_index_of_all_latents_and_of_each(text):
    on, classes, documents = text
    score = counted(on, classes, documents).compute()["pos"]
    table, totals = joint_counts(on, classes["pos"], 5, documents % 16, 16)
    wanted = specialization_index(table, totals, joint_choices(on))
    assert score.value == pytest.approx(wanted.value) and score.null_sd == pytest.approx(wanted.null_sd)
    assert score.units_z[0] > 20 > 5 > score.units_z[1:6].abs().max()
    assert score.units[6].isnan()


def test_labels_of_documents_are_permuted_among_documents(text):
    on, _, documents = text
    by_document = {"pos": documents % 5, "rare": documents % 3}
    counts = LatentCounts(7, FAMILIES, of_documents=("pos",))
    counts.update(*on.nonzero().T, by_document, documents)
    scores = counts.compute()
    table, totals = joint_counts(on, by_document["pos"], 5, documents % 16, 16)
    assert scores["pos"].z == document_specialization_index(table, totals).z
    assert scores["rare"].value == specialization_index(*counts.tables("rare"), joint_choices(on)).value


def test_many_latents_have_no_null_as_a_whole(text, monkeypatch):
    monkeypatch.setattr(module, "_MOST_TOGETHER", 6)
    on, classes, documents = text
    score = counted(on, classes, documents).compute()["pos"]
    assert torch.tensor(score.z).isnan() and score.units_z[0] > 20


def test_other_families_are_refused(text):
    on, classes, documents = text
    with pytest.raises(ValueError, match="classes are"):
        LatentCounts(7, FAMILIES).update(*on.nonzero().T, {"pos": classes["pos"]}, documents)
