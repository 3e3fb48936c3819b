"""The permuted null for labels of whole documents holds on documents that differ for reasons beside their labels."""

import pytest
import torch

from slms.metrics.functional import document_specialization_index as by_document
from slms.metrics.functional import joint_counts, specialization_index


def corpus(seed, effect=0.0, n_documents=160, length=60, n_units=40, n_classes=4):
    """Units whose rate is a property of the document, and of its class with weight `effect`."""
    g = torch.Generator().manual_seed(seed)
    domain = torch.randint(0, n_classes, (n_documents,), generator=g)
    rate = torch.rand(n_documents, n_units, generator=g) * 0.3
    preferred = domain[:, None] == torch.arange(n_units) % n_classes
    rate = rate + effect * preferred
    doc = torch.arange(n_documents * length) // length
    on = torch.rand(len(doc), n_units, generator=g) < rate[doc]
    return joint_counts(on, domain[doc], n_classes, doc % 16, 16)


def test_documents_that_merely_differ_score_nothing():
    scores = [by_document(*corpus(seed), n_permutations=60, seed=seed) for seed in range(12)]
    z = torch.tensor([score.z for score in scores])
    assert z.abs().max() < 4 and abs(float(z.mean())) < 1.2
    units_z = torch.cat([score.units_z for score in scores])
    assert (units_z.abs() > 3).double().mean() < 0.03
    assert abs(sum(score.value for score in scores)) / 12 < 3 * scores[0].null_sd
    # The null of permuted tokens takes the same documents for structure.
    assert specialization_index(*corpus(0)).z > 20


def test_units_that_follow_the_domain_are_found():
    score = by_document(*corpus(0, effect=0.3))
    assert score.z > 20 and score.low < score.value < score.high <= score.ceiling
    assert (score.units_z > 5).double().mean() > 0.9
    again = by_document(*corpus(0, effect=0.3))
    assert again.value == score.value and torch.equal(again.units_z, score.units_z)


def test_strata_of_one_class_change_nothing_and_shapes_are_checked():
    counts, totals = corpus(1, effect=0.2)
    whole = by_document(counts, totals)
    one_stratum = by_document(counts[:, None], totals[:, None])
    assert one_stratum.value == pytest.approx(whole.value)
    single = by_document(counts[:, :, :1], totals[:, :1])
    assert single.units.isnan().all()
    with pytest.raises(ValueError, match="must be"):
        by_document(counts, totals[:, :2])
