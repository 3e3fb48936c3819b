"""Subsets of pathways: chosen on other documents than those that are scored, as large as asked, most used first."""

import numpy as np
import torch

from slms.measure.redundancy import Losses, within
from slms.measure.retention import domains_of, most_used, retention_rows, uses_by_document
from slms.models.routed import choose_by, record_routes, routed_modules
from tests.measure.test_redundancy import brute, model  # noqa: F401  a fixture


def test_the_most_used_are_kept():
    uses = torch.tensor([99.0, 1, 5, 3, 4])
    assert most_used(uses, 0.5).nonzero()[:, 0].tolist() == [0, 2]
    assert most_used(uses, 0.01).sum() == 1 and most_used(uses, 1).all()
    assert most_used(uses, 0.5, n_shared=1).nonzero()[:, 0].tolist() == [0, 2, 4]


def test_documents_that_choose_are_not_scored(model):  # noqa: F811
    _, blocks = model
    even, odd = domains_of(blocks, "domain", fewest=2)
    assert (even.name, odd.name) == ("even", "odd")
    assert even.choosing.nonzero()[:, 0].tolist() == [0, 4] and even.scored.nonzero()[:, 0].tolist() == [2]
    assert odd.choosing.nonzero()[:, 0].tolist() == [1, 5] and odd.scored.nonzero()[:, 0].tolist() == [3]
    assert domains_of(blocks, "domain", fewest=4) == []


def test_uses_are_counted_by_document(model):  # noqa: F811
    net, blocks = model
    uses = uses_by_document(net, blocks, 5)
    with torch.no_grad(), record_routes(net) as routes:
        net(torch.from_numpy(blocks.input_ids.astype("int64")))
    documents = blocks.doc_ids.flatten()
    for place, table in uses.items():
        chosen = routes[place].chosen.numpy()
        for d in range(6):
            assert table[d].tolist() == chosen[documents == d].sum(0).tolist()


def test_losses_are_those_of_the_subset(model):  # noqa: F811
    net, blocks = model
    uses = uses_by_document(net, blocks, 5)
    domains = domains_of(blocks, "domain", fewest=2)
    rows = {row.key[1:]: row for row in retention_rows(Losses(net, blocks, 5), uses, domains, [0.4, 1.0], 2)}
    assert len(rows) == 12
    whole = rows["retained_nats", "odd 1"]
    assert whole.difference == 0 == rows["retained_other_nats", "odd 1"].difference, "all pathways are one set"
    sets = {p: np.argsort(-table[[1, 5]].sum(0).numpy(), kind="stable")[:2] for p, table in uses.items()}

    def choosers():
        for place in routed_modules(net):
            kept = torch.zeros(5, dtype=torch.bool)
            kept[sets[place].copy()] = True
            yield place, lambda x, routes, kept=kept: within(routes.scores, routes.chosen, kept)

    with choose_by(net, dict(choosers())):
        wanted = brute(net, blocks, [3])
    assert abs(rows["retained_nats", "odd 0.4"].value - wanted) < 1e-5
    assert abs(rows["retained_whole_nats", "odd 0.4"].control - brute(net, blocks, [3])) < 1e-5
