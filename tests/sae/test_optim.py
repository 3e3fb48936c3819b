"""Learning rates, schedule and what counts as dead; refusals."""

import pytest
import torch

from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.optim import CoderOptimizerConfig


def test_schedule():
    config = CoderOptimizerConfig(warmup_steps=5, decay=0.5)
    shares = [config.share(step, 100) for step in (0, 4, 5, 49, 50, 75, 100)]
    assert shares == [0.2, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    assert CoderOptimizerConfig(warmup_steps=0, decay=0).share(100, 100) == 1.0


@pytest.mark.parametrize(
    ("d_in", "d_sae", "steps", "lr"),
    [
        (64, 2**14, 10**5, 2e-4),
        (64, 2**14, 10**7, 2e-4),
        (64, 2**12, 10**5, 4e-4),
        (64, 2**14, 10**3, 2e-3),
        (64, 2**6, 10, 1e-2),
        (576, 2**6, 10, 1e-2 / 3),  # a step moves a row of more entries further
    ],
)
def test_automatic_learning_rate(d_in, d_sae, steps, lr):
    assert CoderOptimizerConfig().peak(CoderConfig(kind="topk"), d_in, d_sae, steps) == pytest.approx(lr)
    long = CoderOptimizerConfig().peak(CoderConfig(kind="topk"), d_in, d_sae, 10**6)
    assert CoderOptimizerConfig().peak(CoderConfig(kind="gated"), d_in, d_sae, steps) == long
    assert CoderOptimizerConfig(max_lr=1e-3).peak(CoderConfig(kind="topk"), d_in, 2**6, 10) == 1e-3


def test_given_learning_rate_and_groups_of_each_coder():
    config = CoderOptimizerConfig(lr=0.5)
    assert config.peak(CoderConfig(), 36, 2**14, 10) == 0.5
    coders = [build_coder(CoderConfig(d_sae=s, k=2, kind=kind), 36) for s, kind in ((8, "topk"), (16, "gated"))]
    groups = CoderOptimizerConfig(max_lr=1.0).adam(coders, 10**5).param_groups
    rates = [2e-4 * (2**14 / s) ** 0.5 for s in (8, 16)]
    assert [g["lr"] for g in groups] == pytest.approx([rates[0], rates[0] / 2, rates[1], rates[1] / 6])
    narrow = build_coder(CoderConfig(d_sae=8, k=2, kind="topk"), 4)
    assert len({g["lr"] for g in CoderOptimizerConfig().adam([narrow], 10**5).param_groups}) == 1  # never above it
    for i, coder in enumerate(coders):
        found = [id(p) for group in groups[2 * i : 2 * i + 2] for p in group["params"]]
        assert sorted(found) == sorted(id(p) for p in coder.parameters())
        assert {id(p) for p in groups[2 * i]["params"]} == {id(coder.W_enc), id(coder.W_dec)}


def test_dead_after_a_hundredth_of_the_run_at_most_ten_million_tokens():
    assert [CoderOptimizerConfig().dead_after(n) for n in (10, 5000, 10**10)] == [1, 50, 10**7]
    assert CoderOptimizerConfig(dead_tokens=7).dead_after(1000) == 7


def test_what_a_step_sets():
    coder = build_coder(CoderConfig(d_sae=8, k=2), 4)
    config = CoderOptimizerConfig(sparsity_warmup=0.1)
    shares = []
    for step in (0, 49, 99, 100, 999):
        config.set_step(coder, step, 1000)
        shares.append(coder.sparsity_share)
    assert shares == [0.01, 0.5, 1.0, 1.0, 1.0]
    assert coder.memory == 20


@pytest.mark.parametrize(
    ("kind", "clip", "bound", "wanted"),
    [
        ("topk", None, None, 0.01),
        ("topk", None, 1.0, 0.01),
        ("topk", None, 1e-3, 1e-3),
        ("topk", 0.2, None, 0.2),
        ("relu", None, None, 1.0),
        ("relu", 5.0, 2.0, 2.0),
    ],
)
def test_gradients_are_scaled_to_the_bound(kind, clip, bound, wanted):
    coder = build_coder(CoderConfig(kind=kind, d_sae=8, k=2), 4)
    for factor, length in ((100.0, wanted), (1e-4, 1e-4)):  # a short one stays as it is
        for parameter in coder.parameters():
            parameter.grad = torch.ones_like(parameter)
        n = sum(parameter.numel() for parameter in coder.parameters()) ** 0.5
        for parameter in coder.parameters():
            parameter.grad.mul_(factor / n)
        CoderOptimizerConfig(clip=clip).clip_gradient(coder, bound)
        found = torch.cat([parameter.grad.flatten() for parameter in coder.parameters()]).norm().item()
        assert found == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("max_lr", -1.0),
        ("clip", 0.0),
        ("dead_tokens", 0),
        ("warmup_steps", -1),
        ("decay", 2.0),
        ("sparsity_warmup", -0.1),
    ],
)
def test_refused(option, value):
    with pytest.raises(ValueError, match=rf"model\.optimizer\.{option} is {value}"):
        CoderOptimizerConfig(**{option: value})
