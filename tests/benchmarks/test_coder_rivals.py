"""Every library gets the same batches, and its coder comes back as one of ours that computes the same."""

import numpy as np
import pytest
import torch

from benchmarks import coder_rivals
from benchmarks.coder_rivals import LIBRARIES, PACKAGES, Task, ours

D, S, K = 8, 24, 3


def task(kind="topk", seed=0, n=100, batch_size=16, steps=30):
    rows = np.random.default_rng(0).standard_normal((n, D)).astype("float32") + 2
    return Task(rows, kind, S, K, batch_size, steps, seed, 0.01)


def test_batches_are_the_same_each_time_and_another_order_for_another_seed():
    first, again, other = (
        [batch.numpy() for batch, _ in zip(t.batches(), range(9), strict=False)] for t in (task(), task(), task(seed=1))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_pass_takes_every_row_at_most_once():
    made = task(n=100, batch_size=16)
    where = {row.tobytes(): i for i, row in enumerate(made.train)}
    batches = made.batches()
    passes = [[where[row.tobytes()] for _ in range(6) for row in next(batches).numpy()] for _ in range(2)]
    assert [len(rows) == len(set(rows)) == 96 for rows in passes] == [True, True]
    assert passes[0] != passes[1]


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_ours_reads_the_activations_themselves(kind):
    made = task(kind, n=640)
    coder, x = ours(made), torch.from_numpy(made.train)
    assert (coder.config.kind, coder.d_sae, coder.unit_norm) == (kind, S, True)
    error = (x - coder.reconstruct(x)).square().sum()
    assert error < (x - x.mean(0)).square().sum()


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_weights_of_scaled_input_become_a_coder_of_the_input(kind, unit_norm):
    """Written out from what the libraries compute, a token and a latent at a time."""
    torch.manual_seed(0)
    W_enc, b_enc, W_dec, b_dec, scale = torch.randn(S, D), torch.randn(S), torch.randn(S, D), torch.randn(D), 0.3
    if unit_norm:
        W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    limit = None if kind == "topk" else torch.tensor(1.5)
    made = task(kind)
    coder = coder_rivals._coder(made, W_enc, b_enc, W_dec, b_dec, limit, scale, unit_norm)
    x = torch.from_numpy(made.train[:20])
    wanted = []
    for row in x * scale:
        norms = W_dec.norm(dim=1)
        pre = ((row - b_dec) @ W_enc.T + b_enc) * norms
        on = pre >= pre.sort().values[-K] if limit is None else pre > limit
        y = b_dec.clone()
        for i in on.nonzero()[:, 0]:
            y += max(pre[i], 0) / norms[i] * W_dec[i]
        wanted.append(y / scale)
    assert torch.allclose(coder.reconstruct(x), torch.stack(wanted), atol=1e-4)


@pytest.mark.parametrize("library", PACKAGES)
@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_another_librarys_coder_computes_what_it_does_there(library, kind, monkeypatch):
    pytest.importorskip(PACKAGES[library], reason=f"{PACKAGES[library]} is not a dependency")
    seen = {}
    if library == "saelens":
        trainers = pytest.importorskip("sae_lens.training.sae_trainer")
        fit = trainers.SAETrainer.fit

        def watched(trainer):
            fit(trainer)
            seen["forward"] = trainer.sae.eval()

        monkeypatch.setattr(trainers.SAETrainer, "fit", watched)
        scale = D**0.5 / torch.from_numpy(task().train).norm(dim=1).mean()
    else:
        trainers = pytest.importorskip("dictionary_learning.trainers")
        for name in ("TopKTrainer", "BatchTopKTrainer"):
            real = getattr(trainers, name)

            def made(*args, real=real, **options):
                seen["trainer"] = real(*args, **options)
                return seen["trainer"]

            monkeypatch.setattr(trainers, name, made)
        scale = torch.from_numpy(task().train).square().sum(1).mean().rsqrt()
    wanted = task(kind)
    coder, x = LIBRARIES[library](wanted), torch.from_numpy(wanted.train)
    theirs = seen["forward"] if library == "saelens" else seen["trainer"].ae
    with torch.no_grad():
        if kind == "topk":
            expected = theirs(x * scale) / scale
        elif library == "saelens":  # in training it takes the batch's largest; saved, it is a JumpReLU
            norms = theirs.W_dec.norm(dim=1)
            acts = (((x * scale - theirs.b_dec) @ theirs.W_enc + theirs.b_enc) * norms).relu()
            acts = acts * (acts > theirs.topk_threshold)
            expected = ((acts / norms) @ theirs.W_dec + theirs.b_dec) / scale
        else:
            expected = theirs.decode(theirs.encode(x * scale, use_threshold=True)) / scale
    assert torch.allclose(coder.reconstruct(x), expected, atol=1e-4)
    assert coder.d_sae == S and not torch.equal(expected, expected.mean(0).expand_as(expected))
