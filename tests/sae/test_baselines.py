"""Baselines against their definitions."""

import torch
from torch.testing import assert_close

from slms.models.sites import Site
from slms.sae.baselines import PCA, random_coder

A, B = Site("mlp_in", 0), Site("mlp_out", 0)


def data():
    torch.manual_seed(0)
    x = torch.randn(400, 6) @ torch.randn(6, 6) + 3.0
    return x, x @ torch.randn(6, 4) + 0.1 * torch.randn(400, 4) - 1.0


def test_pca_leaves_the_small_eigenvalues():
    x, _ = data()
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    for k in (1, 3, 6):
        error = (x - PCA(A, A, x, x, k).reconstruct(x)).square().sum(1).mean()
        assert_close(error, values[k:].sum(), rtol=1e-3, atol=1e-3)


def test_reduced_rank_regression_is_the_best_linear_map():
    x, y = data()
    full = PCA(A, B, x, y, 4)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    best = design @ torch.linalg.lstsq(design, y).solution
    assert_close(full.reconstruct(x), best, rtol=1e-3, atol=1e-3)
    errors = [(y - PCA(A, B, x, y, k).reconstruct(x)).square().sum() for k in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    picks, values = full.latents(x)
    assert picks.n_rows == 400 and len(values) == 1600


def test_random_coder_beats_the_mean_but_not_pca():
    x, y = data()
    for source, target, wanted in ((A, A, x), (A, B, y)):
        coder = random_coder(source, target, x, wanted, d_sae=64, k=3)
        error = (wanted - coder.reconstruct(x)).square().sum()
        assert error < (wanted - wanted.mean(0)).square().sum()
        assert error > (wanted - PCA(source, target, x, wanted, 3).reconstruct(x)).square().sum()
        assert len(coder.latents(x)[1]) == 400 * 3
