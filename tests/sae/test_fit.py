"""The plain loop learns what planted data hold; the test of the run shows that it equals Lightning's."""

import torch

from slms.models.sites import Site
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.fit import fit
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.training_coder import TrainingCoder

D, N, STEPS = 8, 64, 60


def planted(n, generator):
    """Tokens that are sums of two of twelve fixed directions."""
    directions = torch.nn.functional.normalize(torch.randn(12, D, generator=torch.Generator().manual_seed(0)), dim=1)
    picks = torch.stack([torch.randperm(12, generator=generator)[:2] for _ in range(n)])
    return 3.0 + 5.0 * directions[picks].sum(1)


def test_learns_and_folds_the_scale():
    generator = torch.Generator().manual_seed(1)
    x, here = planted(N * STEPS, generator), Site("residual", 0)
    spec = CoderSpec(here.name, coder=CoderConfig(kind="topk", d_sae=24, k=2, k_aux=2))
    batches = [{here.name: batch} for batch in x.split(N)]
    fresh, trained = (
        fit(TrainingCoder(spec, here, here, x, x), iter(batches), steps, CoderOptimizerConfig(lr=0.02)).folded()
        for steps in (0, STEPS)
    )
    test = planted(200, generator)
    variance = (test - test.mean(0)).square().sum()
    before, after = ((test - coder(test)).square().sum() / variance for coder in (fresh, trained))
    assert after < 0.5 * before
    assert after < 0.2
