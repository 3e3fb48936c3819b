"""Every number that is read of latents over a text equals that of the dense activations of all tokens at once."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

from slms.data.text import Blocks
from slms.measure.features import BINS_AN_OCTAVE, OCTAVES, ContextReader, LatentStatistics, neighbours, read_uses
from slms.models.sites import Site, read_sites
from slms.sae.baselines import FixedCoder
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from tests.tiny import tiny_config

S, T, N_BLOCKS, SPECIAL = 20, 8, 7, torch.tensor([0])


@pytest.fixture(scope="module")
def place():
    """A tiny model, a coder of its residual stream, seven blocks of text, and all activations [n, s] at once."""
    torch.manual_seed(0)
    config = tiny_config(13, hidden_size=6, max_position_embeddings=T, intermediate_size=12)
    model = GPTNeoForCausalLM(config).eval()
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 13, (N_BLOCKS, T)).astype(np.uint16)
    documents = (np.arange(N_BLOCKS * T) // 11).reshape(N_BLOCKS, T).astype(np.int32)
    labels = {"parity": (ids % 2).astype(np.int16)}
    blocks = Blocks(ids, documents, labels, {"parity": ("even", "odd")})
    site = Site("residual", 0)
    x = read_sites(model, torch.from_numpy(ids.astype("int64")), [site])[site.name]
    coder = FixedCoder(build_coder(CoderConfig(kind="topk", d_sae=S, k=3), 6), site, site, x, x)
    acts = coder.coder.encode(x).detach()
    acts[torch.from_numpy(ids.astype("int64")).flatten() == 0] = 0
    return model, blocks, coder, acts


def read(place, batch_size=2, **options):
    model, blocks, coder, _ = place
    reader = LatentStatistics(S, blocks, 3, 2, **options)
    for uses in read_uses(model, blocks, coder, SPECIAL, batch_size):
        reader.update(uses)
    return reader


def test_statistics(place):
    _, blocks, _, acts = place
    reader = read(place)
    assert torch.equal(reader.uses, (acts > 0).sum(0))
    assert reader.tokens == int((blocks.input_ids != 0).sum())
    torch.testing.assert_close(reader.total.float(), acts.sum(0))
    edges = 2.0 ** (torch.arange(-OCTAVES * BINS_AN_OCTAVE, OCTAVES * BINS_AN_OCTAVE + 1).double() / BINS_AN_OCTAVE)
    for latent in range(S):
        values = acts[:, latent][acts[:, latent] > 0].double()
        wanted = torch.histogram(values, edges).hist.long() if len(values) else torch.zeros(len(edges) - 1).long()
        assert torch.equal(reader.histogram[latent], wanted)


def test_strongest_uses_and_their_contexts(place):
    model, blocks, coder, acts = place
    reader = read(place)
    contexts = ContextReader(blocks, (reader.strongest.kept, reader.random.kept), before=3, after=2)
    for uses in read_uses(model, blocks, coder, SPECIAL, 3):
        contexts.update(uses)
    documents = blocks.doc_ids.flatten()
    for table, found in enumerate(contexts.compute()):
        for latent in range(S):
            by_block = acts[:, latent].view(N_BLOCKS, T).max(1).values
            assert len(found[latent]) == min(int((by_block > 0).sum()), (3, 2)[table])
            values = [context.activations[context.peak] for context in found[latent]]
            if table == 0:
                assert values == pytest.approx(by_block.sort(descending=True).values[: len(values)].tolist())
            for context in found[latent]:
                at, n = context.start + context.peak, len(context.activations)
                assert context.activations == pytest.approx(acts[context.start : context.start + n, latent].tolist())
                here = [
                    i
                    for i in range(at - 3, at + 3)
                    if 0 <= i < len(documents) and i // T == at // T and documents[i] == documents[at]
                ]
                assert (context.start, n) == (here[0], len(here))


def test_random_uses_differ_with_the_seed_but_not_with_the_batch(place):
    assert not torch.equal(read(place, seed=1).random.kept.position, read(place, seed=2).random.kept.position)
    assert torch.equal(read(place, batch_size=7).strongest.kept.position, read(place).strongest.kept.position)


def test_sampled_tokens_carry_their_activations(place):
    _, blocks, _, acts = place
    latents = torch.tensor([5, 0, 11])
    sample, documents = read(place, n_sampled=10**6).sample(latents)
    measured = torch.from_numpy(blocks.input_ids.astype("int64")).flatten() != 0
    torch.testing.assert_close(sample, acts[measured][:, latents])
    assert torch.equal(documents, torch.from_numpy(blocks.doc_ids).flatten()[measured])
    some, _ = read(place, n_sampled=9).sample(latents)
    assert 0 < len(some) <= 9


def test_neighbours():
    W = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0], [-1.0, 0.0]])
    indices, cosines = neighbours(W, 2)
    assert indices[0].tolist() == [1, 2] and cosines[0, 1] == 0
    assert indices.shape == cosines.shape == (4, 2) and not (indices == torch.arange(4)[:, None]).any()
    assert neighbours(W, 9)[0].shape == (4, 3)
