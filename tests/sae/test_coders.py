"""Coders: losses and every gradient against dense autograd in float64, and what each kind promises."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from slms.sae import sparse
from slms.sae.coders import KINDS, BatchTopK, build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import fold_scale
from slms.sae.reference import reference_loss

D, S, N = 7, 48, 13


def make(kind, d_out=None, skip=False, **options):
    """A coder in float64 whose parameters are all away from their initial values, and a batch.

    `KIND released` has decoder rows of any norm.
    """
    torch.manual_seed(3)
    options = {"d_sae": S, "k": 5, "k_aux": 3, "sparsity": 0.3, "aux": 0.5, "bandwidth": 0.4} | options
    kind, _, released = kind.partition(" ")
    coder = build_coder(CoderConfig(kind=kind, skip=skip, **options), D, d_out).double()
    coder.unit_norm = not released
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            if name == "threshold":
                parameter.abs_()
    x = torch.randn(N, D, dtype=torch.float64)
    y = x if d_out is None else torch.randn(N, d_out, dtype=torch.float64)
    return coder.train(), x, y


def gradients(coder, loss):
    """Every parameter's gradient by name; fails where one is missing."""
    coder.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in coder.named_parameters()}


SHAPES = {"autoencoder": (None, False), "transcoder": (5, False), "skip": (5, True)}
RELEASED = ["topk released", "batch_topk released", "matryoshka released"]
CASES = list(itertools.product([*KINDS, *RELEASED], SHAPES, ("none", "few", "many")))


@pytest.mark.parametrize("dense_share", [0.0, 1.0], ids=["dense products", "sparse products"])
@pytest.mark.parametrize(("kind", "shape", "dead"), CASES)
def test_loss_and_every_gradient_equal_dense_autograd(kind, shape, dead, dense_share, monkeypatch):
    monkeypatch.setattr(sparse, "DENSE_SHARE", dense_share)
    coder, x, y = make(kind, *SHAPES[shape])
    mask = {"none": None, "few": torch.arange(S) < 2, "many": torch.arange(S) % 3 == 0}[dead]
    losses = coder.loss(x, y, mask)
    expected = reference_loss(coder, x, y, mask)
    assert_close(losses.total, expected, rtol=1e-12, atol=1e-12)
    assert (losses.aux > 0) == (mask is not None)
    found, wanted = gradients(coder, losses.total), gradients(coder, expected)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        assert wanted[name].abs().max() > 0, f"{name} has no gradient: the test would prove nothing"


@pytest.mark.parametrize("kind", [*KINDS, *RELEASED])
def test_aux_k_reaches_the_dead_latents_encoder(kind):
    coder, x, y = make(kind)
    mask = torch.arange(S) >= S - 4
    with torch.no_grad():
        (coder.b_gate if kind == "gated" else coder.b_enc)[mask] += 0.5
    residual = torch.randn_like(y)
    coder.aux_k(x, residual, mask).backward()
    assert coder.W_enc.grad[mask].abs().sum(1).min() > 0
    assert coder.W_dec.grad[mask].abs().sum(1).min() > 0
    assert coder.W_enc.grad[~mask].abs().max() == 0


@pytest.mark.parametrize("kind", [*KINDS, *RELEASED])
def test_input_gradient(kind):
    coder, x, y = make(kind)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    coder.loss(ours, y).total.backward()
    reference_loss(coder, theirs, y).backward()
    assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_and_dense_inference_agree(kind, shape):
    coder, x, y = make(kind, *SHAPES[shape])
    if isinstance(coder, BatchTopK):
        coder.observe(coder.loss(x, y))
        coder.threshold *= 1 - 1e-9  # the smallest value in use is the threshold; another product rounds to either side
    coder.eval()
    assert_close(coder.reconstruct(x), coder(x), rtol=1e-12, atol=1e-12)
    picks, values = coder.latents(x)
    assert_close(picks.dense(values), coder.encode(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", RELEASED)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_any_norm_are_the_coder_with_their_norms_in_the_encoder(kind, shape):
    coder, x, y = make(kind, *SHAPES[shape])
    losses = coder.loss(x, y, torch.arange(S) < 20)
    coder.observe(losses)
    if isinstance(coder, BatchTopK):
        coder.threshold.mul_(0.97)  # away from the value that it is made of
    folded = fold_scale(coder, 1.0)
    assert_close(folded.W_dec.norm(dim=1), torch.ones(S).double())
    same = folded.loss(x, y, torch.arange(S) < 20)
    for one, other in zip(losses, same, strict=True):
        if isinstance(one, torch.Tensor):
            assert_close(one, other)
    plain, _, _ = make(kind.split()[0], *SHAPES[shape])
    assert not torch.equal(plain.loss(x, y).picks.indices, losses.picks.indices), "norms choose no other latents"
    for training in (True, False):
        coder.train(training), folded.train(training)
        (picks, values), (others, wanted) = coder.latents(x), folded.latents(x)
        assert torch.equal(picks.flat, others.flat)
        assert_close(values, wanted)
        assert_close(coder.reconstruct(x), folded(x))


def test_released_rows_keep_their_norms():
    coder, x, y = make("topk released")
    before = coder.W_dec.detach().clone()
    coder.loss(x, y).total.backward()
    gradient = coder.W_dec.grad.clone()
    coder.project_gradient()
    coder.after_step()
    assert torch.equal(coder.W_dec.grad, gradient) and torch.equal(coder.W_dec, before)


def test_topk_uses_k_latents_and_batch_topk_k_on_average():
    coder, x, _ = make("topk")
    coder.b_enc.data += 3.0
    assert ((coder.encode(x) > 0).sum(1) == 5).all()
    coder, x, _ = make("batch_topk")
    coder.b_enc.data += 3.0
    counts = (coder.encode(x) > 0).sum(1)
    assert counts.sum() == 5 * N
    assert counts.min() < counts.max()


def test_batch_topk_threshold_follows_the_smallest_value():
    coder, x, y = make("batch_topk")
    coder.b_enc.data += 3.0
    losses = coder.loss(x, y)
    least = losses.values.min()
    coder.observe(losses)
    assert_close(coder.threshold.double(), least)
    coder.observe(losses._replace(values=losses.values + 1.0))
    assert_close(coder.threshold.double(), least + 1e-3, rtol=1e-6, atol=1e-6)
    coder.eval()
    wanted = (coder.b_enc + (x - coder.b_dec) @ coder.W_enc.T) > coder.threshold
    assert torch.equal(coder.encode(x) > 0, wanted)


def test_projected_gradient_is_tangent_and_rows_return_to_the_sphere():
    coder, x, y = make("topk")
    coder.after_step()
    coder.loss(x, y).total.backward()
    before = coder.W_dec.grad.clone()
    coder.project_gradient()
    radial = (coder.W_dec.grad * coder.W_dec).sum(1)
    assert radial.abs().max() < 1e-12 < (before * coder.W_dec).sum(1).abs().max()
    with torch.no_grad():
        coder.W_dec.add_(coder.W_dec.grad)
    coder.after_step()
    assert_close(coder.W_dec.norm(dim=1), torch.ones(S, dtype=torch.float64))


def test_one_token_and_k_of_all_latents():
    coder, x, y = make("topk", k=S)
    assert_close(coder.loss(x[:1], y[:1]).total, reference_loss(coder, x[:1], y[:1]))


def test_skip_needs_a_transcoder():
    with pytest.raises(ValueError, match=r"coder\.skip"):
        build_coder(CoderConfig(skip=True), D)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [True, False])
def test_bfloat16(kind, mixed):
    """Under autocast, and with parameters of bfloat16, the loss of float32 to the two digits that it has."""
    config, x, dead = CoderConfig(kind=kind, d_sae=64, k=4), torch.randn(128, 16), torch.arange(64) < 20
    losses = []
    for low in (False, True):
        torch.manual_seed(0)
        coder, y = build_coder(config, 16), x
        if low and not mixed:
            coder, y = coder.to(torch.bfloat16), x.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=low and mixed):
            loss = coder.loss(y, y, dead)
        loss.total.backward()
        losses.append(float(loss.total.detach()))
        assert coder.reconstruct(x).isfinite().all() and coder.latents(x)[1].isfinite().all()
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(
    ("kind", "d_out", "n_sources", "rows"),
    [
        ("topk", None, 1, (1.0, 1.0)),
        ("batch_topk", None, 1, (1.0, 1.0)),
        ("matryoshka", None, 1, (1.0, 1.0)),
        ("topk", 6, 1, (0.1, 0.03)),
        ("topk", None, 2, (0.1, 0.03)),
        ("relu", None, 1, (0.1, 1.0)),
        ("gated", None, 1, (0.1, 1.0)),
    ],
)
def test_norms_at_the_start(kind, d_out, n_sources, rows):
    coder = build_coder(CoderConfig(kind=kind, d_sae=9, k=2), 6, d_out)
    if n_sources > 1:
        coder.read_sources(n_sources)
    if coder.config.fixed_k:
        coder.release_norms()
    found = [W.norm(dim=1) for W in (coder.W_enc, coder.W_dec)]
    assert all(torch.allclose(norms, torch.full((9,), wanted)) for norms, wanted in zip(found, rows, strict=True))
    assert coder.starts_large == (rows == (1.0, 1.0))
