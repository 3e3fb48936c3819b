"""Communities and their Q against planted blocks and noise.

`SLMS_NOISE_SEEDS=100 pytest tests/metrics/test_communities.py -k width` scores noise of 64 to 4,096 neurons at so many
seeds: a quarter of an hour of CPU, two thirds of it for 4,096 neurons; `-k "width and 64"` is one width. By default
three seeds at two widths.
"""

import hashlib
import math
import os
from pathlib import Path

import pytest
import torch

from slms.metrics import communities
from slms.metrics.communities import leiden
from slms.metrics.functional import adjusted_rand_index, coactivation, graph, modularity, partition_quality

NOISE_SEEDS = int(os.environ.get("SLMS_NOISE_SEEDS", "0"))
TOKENS = 512


def blocks(n, f, c, correlation, seed=0):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, c, (f,), generator=g)
    shared = torch.randn(n, c, generator=g)[:, label]
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * torch.randn(n, f, generator=g), label


def test_sixteen_planted_blocks_are_found():
    x, label = blocks(1024, 512, 16, 0.2)
    steps = []
    found = modularity(x, groups=torch.arange(1024) % 8, n_nulls=5, progress=steps.append)
    assert adjusted_rand_index(found.communities, label) >= 0.95
    assert found.z >= 20 and found.stability >= 0.95 and found.n_communities == 16 and found.n == 1024
    assert found.low < found.q < found.high and found.q > found.null_mean
    assert len(steps) == 7


@pytest.mark.parametrize("tails", ["normal", "log-normal", "rare"])
def test_noise_scores_0_whatever_its_tails(tails):
    g = torch.Generator().manual_seed(0)
    z = []
    for _ in range(5):
        x = torch.randn(400, 96, generator=g)
        if tails == "log-normal":
            x = (1.5 * x).exp()
        if tails == "rare":
            x = torch.relu(x - torch.linspace(0, 2.5, 96))
        z.append(modularity(x, n_nulls=8, n_seeds=2).z)
    assert sum(abs(value) < 3 for value in z) >= 4, z
    assert abs(sum(z) / len(z)) < 1.5, z


@pytest.mark.parametrize("width", [64, 256, 1024, 2048, 4096] if NOISE_SEEDS else [64, 256])
def test_noise_scores_0_at_every_width(width, request, capsys):
    """|z| < 3 in 95 % of the seeds (one of few may be outside), and a mean of z that chance explains: so no rise.

    Independent neurons and their shuffled copies are exchangeable, so z / √(1 + 1/10) is about Student's t with 9
    degrees of freedom: sd of z 1.19. Seeds done are kept in pytest's cache, for these sources: a killed run goes on.
    """
    seeds = NOISE_SEEDS or 3
    version = hashlib.sha256(b"".join(Path(m.__file__).read_bytes() for m in (communities, graph))).hexdigest()[:12]
    key = f"noise/{version}/{TOKENS}x{width}"
    z = request.config.cache.get(key, []) if NOISE_SEEDS else []
    for seed in range(len(z), seeds):
        x = torch.relu(torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(1000 * width + seed)))
        z.append(modularity(x, n_seeds=2, seed=seed).z)
        if NOISE_SEEDS:
            request.config.cache.set(key, z)
    z = z[:seeds]
    mean, outside = sum(z) / seeds, sum(abs(value) >= 3 for value in z)
    if NOISE_SEEDS:
        largest = max(map(abs, z))
        with capsys.disabled():
            print(f"\n{width}: |z| < 3 in {seeds - outside} of {seeds} seeds, mean {mean:+.2f}, largest {largest:.1f}")
    assert outside <= max(1, 0.05 * seeds), z
    assert abs(mean) < 3 * 1.19 / seeds**0.5, z


def test_same_seed_same_numbers_and_dead_neurons_stay_apart():
    x, _ = blocks(300, 80, 4, 0.3)
    x[:, 10:20] = 0
    first, second = (modularity(x, n_nulls=3, n_seeds=2, seed=5) for _ in range(2))
    assert (first.q, first.z, first.stability) == (second.q, second.z, second.stability)
    assert torch.equal(first.communities, second.communities)
    assert first.n_communities == 4 and len(set(first.communities[10:20].tolist())) == 10
    assert math.isnan(first.low)  # no groups, no interval


def test_leiden_is_at_least_as_good_as_the_planted_partition():
    x, label = blocks(500, 120, 6, 0.15)
    w = coactivation(x)
    assert partition_quality(w, leiden(w)) >= partition_quality(w, label) - 0.005


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(5, 1\)"):
        modularity(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="n_nulls is 1"):
        modularity(torch.zeros(5, 5), n_nulls=1)


def test_one_document_has_no_interval():
    x = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    found = modularity(x, groups=torch.zeros(64, dtype=torch.int64), n_nulls=2, n_seeds=2)
    assert found.q == found.q and found.low != found.low
