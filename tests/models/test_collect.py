"""Chunks: right rows in the right order, what is left out, and the cache on disk."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

from slms.data.module import BlockOrder
from slms.models.collect import ActivationCache, Collector
from slms.models.sites import find_site, read_sites
from slms.models.weights import model_digest
from tests.tiny import tiny_config

BLOCKS = np.random.default_rng(0).integers(2, 30, size=(10, 6)).astype(np.uint16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = tiny_config(31, max_position_embeddings=16)
    return GPTNeoForCausalLM(config).eval()


def collect(model, names=("residual.0", "mlp_out.1"), blocks=BLOCKS, special=(), max_norm=10.0, cache=None, **order):
    order = BlockOrder(len(blocks), **{"batch_size": 2, "batches_per_epoch": 3, "seed": 5} | order)
    return Collector(
        model, [find_site(model, n) for n in names], blocks, order, torch.tensor(special).long(), max_norm, cache
    )


def test_chunk_is_the_orders_blocks(model):
    made = collect(model)
    chunk = made(1)
    rows = [row for batch in BlockOrder(10, 2, 3, 5, epoch=1) for row in batch]
    expected = read_sites(model, torch.from_numpy(BLOCKS[rows].astype(np.int64)), made.sites)
    assert made.tokens == len(chunk.kept) == 36
    for name in ("residual.0", "mlp_out.1"):
        torch.testing.assert_close(chunk.rows[name], expected[name])
    assert chunk.kept.all()


def test_ranks_read_different_blocks(model):
    ids = [collect(model, world=2, rank=rank, batch_size=1)(0).rows["residual.0"] for rank in (0, 1)]
    assert not torch.equal(*ids)


def test_special_and_extreme_tokens_are_left_out(model):
    blocks = BLOCKS.copy()
    blocks[blocks == 9] = 8
    blocks[:, 0] = 1
    kept = collect(model, blocks=blocks, special=[1])(0).kept
    assert torch.equal(kept.view(-1, 6)[:, 0], torch.zeros(6, dtype=torch.bool))
    assert kept.view(-1, 6)[:, 1:].all()
    with torch.no_grad():
        model.transformer.wte.weight[9] *= 1000  # an attention sink
    blocks[:, 3] = 9
    kept = collect(model, blocks=blocks, special=[1])(0).kept.view(-1, 6)
    assert not kept[:, [0, 3]].any()
    assert kept[:, [1, 2, 4, 5]].all()


def test_cache_gives_back_what_was_written_and_nothing_is_computed_twice(model, tmp_path):
    made_from = {"model": model_digest(model), "sites": ["residual.0"]}
    first = collect(model, ["residual.0"], cache=ActivationCache(tmp_path, made_from))(2)
    ran = []
    model.transformer.register_forward_hook(lambda *_: ran.append(1))
    again = collect(model, ["residual.0"], cache=ActivationCache(tmp_path, made_from))(2)
    assert ran == []
    assert torch.equal(again.rows["residual.0"], first.rows["residual.0"])
    assert torch.equal(again.kept, first.kept)


def test_cache_of_another_model_is_refused(model, tmp_path):
    ActivationCache(tmp_path, {"model": model_digest(model)})
    before = model_digest(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert model_digest(model) != before
    with pytest.raises(ValueError, match=rf"{tmp_path}: made with model {before}, not"):
        ActivationCache(tmp_path, {"model": model_digest(model)})
