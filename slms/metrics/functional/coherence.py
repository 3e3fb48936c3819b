"""Semantic coherence: how alike in meaning the tokens are that activate a unit most.

Shapes: n tokens, u units, k strongest tokens of a unit, d width of the token embeddings, g document groups.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.intervals import jackknife
from slms.metrics.functional.score import Score, against_null


class Strongest(NamedTuple):
    """The tokens of a sample at which each unit is strongest."""

    rows: Tensor
    """int64 [u, k], row in the sample; padded with −1 if the unit is on at fewer than k tokens"""
    tokens: Tensor
    """int64 [u, k], token id; padded likewise"""


def strongest(strength: Tensor, tokens: Tensor, k: int = 32) -> Strongest:
    """For each unit, the k tokens (int64 [n]) of largest strength [n, u], strength 0 excluded."""
    value, rows = strength.T.contiguous().topk(min(k, len(strength)), dim=1)
    rows = torch.where(value > 0, rows, -1)
    return Strongest(rows, torch.where(value > 0, tokens[rows.clamp(min=0)], -1))


def pairwise_similarity(tokens: Tensor, embedding: Tensor) -> Tensor:
    """Mean cosine [u] of the embeddings of two different tokens of each unit; NaN if all its tokens are the same.

    (‖Σ_t n_t e_t‖² − Σ_t n_t²) / ((Σ_t n_t)² − Σ_t n_t²) with n_t the occurrences of token t and e_t of unit length.
    It leaves out pairs of a token with itself, which say nothing about meaning.

    Args:
        tokens: int64 [u, k], padded with −1; embedding: [v, d], rows of unit length.
    """
    there = tokens >= 0
    total = torch.nn.functional.embedding_bag(
        tokens.clamp(min=0), embedding, mode="sum", per_sample_weights=there.to(embedding.dtype)
    )
    same = ((tokens[:, :, None] == tokens[:, None]) & there[:, None]).sum((1, 2), dtype=torch.float64)
    size = there.sum(1, dtype=torch.float64)
    pairs = size.square() - same
    return torch.where(pairs > 0, (total.double().square().sum(1) - same) / pairs, torch.nan)


def unit_directions(embedding: Tensor, tokens: Tensor) -> Tensor:
    """Embedding [v, d] centred on the mean over the text's tokens [n], rows of unit length (0 stays 0)."""
    centred = embedding.float() - embedding[tokens].float().mean(0)
    return torch.nn.functional.normalize(centred, dim=1)


def semantic_coherence(
    strength: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    groups: Tensor | None = None,
    k: int = 32,
    n_permutations: int = 20,
    seed: int = 0,
) -> Score:
    """Mean cosine of the embeddings of the different tokens that activate a unit most, minus that of random tokens.

    It is 0 for units that respond to tokens without regard to meaning, however frequent. The null permutes the tokens
    of the sample, so that each unit keeps as many tokens, and units that share tokens still do. A unit with a single
    token has no pairs and no value.

    Args:
        strength: [n, u], at least 0; tokens: int64 [n], token ids.
        embedding: [v, d], the model's input embedding of the vocabulary.
        groups: int64 [n], document group of each token, for the interval (delete-a-group jackknife).
        k: number of strongest tokens of a unit.
    """
    n = len(strength)
    if tokens.shape != (n,):
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; it must be [{n}], one for each row of strength.")
    direction = unit_directions(embedding, tokens)
    best = strongest(strength, tokens, k)
    found = pairwise_similarity(best.tokens, direction)
    generator = torch.Generator().manual_seed(seed)
    null = []
    for _ in range(n_permutations):
        permuted = tokens[torch.randperm(n, generator=generator).to(tokens.device)]
        drawn = torch.where(best.rows >= 0, permuted[best.rows.clamp(min=0)], -1)
        null.append(pairwise_similarity(drawn, direction))
    of_units = torch.stack(null)
    of_layer = of_units.nanmean(1)
    chance = float(of_layer.mean())

    half = torch.nan
    if groups is not None and len(groups.unique()) > 1:  # one document has no interval
        left_out = [
            pairwise_similarity(strongest(strength[rest], tokens[rest], k).tokens, direction).nanmean()
            for rest in (groups != group for group in groups.unique())
        ]
        half = float(jackknife(torch.stack(left_out)))
    value, sd = float(found.nanmean()) - chance, float(of_layer.std())
    unit_sd = (of_units - of_units.nanmean(0)).square().nanmean(0).sqrt()
    units = found - of_units.nanmean(0)
    return Score(
        **against_null(value, half, chance, sd),
        ceiling=1 - chance,
        n=n,
        units=units,
        units_z=torch.where(unit_sd > 0, units / unit_sd, torch.nan),
        left_out=None,
    )
