"""Utilization and saturation against hand counts."""

import math

import pytest
import torch

from slms.metrics.functional import captured_share, largest, router_saturation, utilization


def test_balanced_load():
    used = utilization(torch.full((7,), 30))
    assert used.share_used == 1 and used.effective == pytest.approx(1) and used.max_violation == pytest.approx(0)
    assert used.load_entropy == pytest.approx(math.log(7)) and used.load.tolist() == pytest.approx([1 / 7] * 7)


def test_unused_pathways_count():
    used = utilization(torch.tensor([60, 38, 2, 0]))  # .02 lies below .1/4, .38 above
    assert used.share_used == 0.5
    assert used.max_violation == pytest.approx(0.6 * 4 - 1)
    h = -(0.6 * math.log(0.6) + 0.38 * math.log(0.38) + 0.02 * math.log(0.02))
    assert used.load_entropy == pytest.approx(h) and used.effective == pytest.approx(math.exp(h) / 4)


def test_collapse():
    used = utilization(torch.tensor([0, 0, 9, 0]))
    assert used.share_used == used.effective == 0.25 and used.max_violation == 3 and used.load_entropy == 0


@pytest.mark.parametrize("choices", [torch.zeros(4), torch.ones(2, 2)])
def test_no_choice_is_an_error(choices):
    with pytest.raises(ValueError, match="choices"):
        utilization(choices)


def test_saturation_is_the_share_already_chosen():
    final = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    now = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]]).bool()
    assert router_saturation(now, final) == pytest.approx((0.5 + 1) / 2)  # the third token chose nothing in the end
    assert router_saturation(final, final) == 1
    with pytest.raises(ValueError, match="same tokens"):
        router_saturation(now[:2], final)


def test_captured_share_by_hand():
    norms = torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [5.0, 1.0, 4.0], [1.0, 1.0, 1.0]])
    chosen = torch.tensor([[True, False, True], [True, True, False], [False, True, False], [False, False, False]])
    found = captured_share(norms, chosen)
    assert found[[0, 2]].tolist() == pytest.approx([4 / 5, 1 / 5])
    assert found[[1, 3]].isnan().all()


def test_the_oracles_own_choice_captures_everything():
    generator = torch.Generator().manual_seed(0)
    norms, size = torch.rand(50, 7, generator=generator), torch.randint(1, 8, (50, 1), generator=generator)
    chosen = torch.rand(50, 7, generator=generator).argsort(1).argsort(1) < size
    best = largest(norms, chosen)
    assert best.sum(1).equal(chosen.sum(1))
    assert captured_share(norms, best).tolist() == pytest.approx([1.0] * 50)
    for row, picked in zip(norms, best, strict=True):
        assert row[picked].min() >= row[~picked].max() if not picked.all() else True
    shared = largest(norms, chosen | (torch.arange(7) < 2), n_shared=2)
    assert shared[:, :2].all() and shared.sum(1).equal((chosen | (torch.arange(7) < 2)).sum(1))
