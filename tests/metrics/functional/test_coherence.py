"""Coherence against loops over pairs, on units with and without a meaning."""

import pytest
import torch

from slms.metrics.functional.coherence import (
    pairwise_similarity,
    semantic_coherence,
    strongest,
    unit_directions,
)


def text(seed=0, n=2000, v=60, d=16, n_meanings=6):
    """Tokens of a Zipf vocabulary whose embeddings lie around one of a few directions."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(1 / (1 + torch.arange(v).double()), n, replacement=True, generator=g)
    meaning = torch.arange(v) % n_meanings
    embedding = torch.randn(n_meanings, d, generator=g)[meaning] + 0.5 * torch.randn(v, d, generator=g)
    return tokens, embedding, meaning, g


def test_similarity_is_the_mean_over_pairs_of_different_tokens():
    _, embedding, _, g = text()
    direction = torch.nn.functional.normalize(embedding, dim=1)
    ids = torch.randint(0, 10, (5, 7), generator=g)
    ids[1, 3:] = -1
    for u, found in enumerate(pairwise_similarity(ids, direction).tolist()):
        present = [i for i in ids[u].tolist() if i >= 0]
        pairs = [(a, b) for i, a in enumerate(present) for j, b in enumerate(present) if i != j and a != b]
        cosines = [float(direction[a] @ direction[b]) for a, b in pairs]
        assert found == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert pairwise_similarity(torch.tensor([[4, 4, 4]]), direction).isnan().all()


def test_strongest_leaves_out_what_is_off():
    strength = torch.tensor([[0.0, 1.0], [3.0, 0.0], [2.0, 0.0]])
    found = strongest(strength, torch.tensor([7, 8, 9]), k=2)
    assert found.tokens.tolist() == [[8, 9], [7, -1]] and found.rows.tolist() == [[1, 2], [0, -1]]


def test_units_that_follow_a_meaning_are_coherent_and_others_are_not():
    tokens, embedding, meaning, g = text()
    noise = torch.rand(len(tokens), 24, generator=g)
    groups = torch.arange(len(tokens)) % 8
    random = semantic_coherence(noise, tokens, embedding, groups)
    assert abs(random.z) < 4 and abs(random.value) < 0.05
    follows = noise + 2 * (meaning[tokens][:, None] == torch.arange(24) % 6)
    found = semantic_coherence(follows, tokens, embedding, groups)
    assert found.z > 20 and found.value > 0.3 and found.low < found.value < found.high
    assert (found.units > 0.2).double().mean() > 0.9
    single = semantic_coherence((tokens[:, None] == torch.arange(3)).float(), tokens, embedding)
    assert single.units.isnan().all(), "one token has no pairs"


def test_directions_are_centred_on_the_text():
    tokens, embedding, _, _ = text()
    shifted = unit_directions(embedding + 5, tokens)
    assert torch.allclose(shifted, unit_directions(embedding, tokens), atol=1e-5)
    with pytest.raises(ValueError, match="one for each row"):
        semantic_coherence(torch.ones(4, 2), tokens, embedding)


@pytest.mark.parametrize("n", [1, 40])
def test_one_document_has_no_interval(n):
    tokens, embedding, _, g = text(n=n)
    found = semantic_coherence(torch.rand(n, 5, generator=g), tokens, embedding, torch.zeros(n, dtype=torch.int64))
    assert found.low != found.low and found.high != found.high
