"""A crosscoder is, source by source, what its definition says; with one source it is the autoencoder."""

import pytest
import torch

import slms
from slms.models.sites import Site
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.export import Provenance, architecture, save
from slms.sae.fit import fit
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.training_coder import TrainingCoder

E, M, S, K, N = 6, 3, 40, 4, 30
CROSS = Site("cross", 2, parts=tuple(Site("residual", layer) for layer in range(M)))
KINDS = ("topk", "batch_topk")


def made(kind, n_sources=M):
    """A crosscoder in training, with every parameter away from its initial value, in float64."""
    torch.manual_seed(0)
    coder = build_coder(CoderConfig(kind=kind, d_sae=S, k=K), E * n_sources)
    coder.read_sources(n_sources)
    coder.release_norms()
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return coder.double()


def slow_loss(coder, x, dead):
    """Σ over sources of mean_n ‖x_m − x̂_m‖² + AuxK: encoders summed, latents ranked by f · Σ_m ‖W_dec_m‖."""
    xs, encoders, decoders = (t.chunk(coder.n_sources, dim=1) for t in (x, coder.W_enc, coder.W_dec))
    biases = coder.b_dec.chunk(coder.n_sources)
    z = coder.b_enc + sum((xm - b) @ W.T for xm, b, W in zip(xs, biases, encoders, strict=True))
    weight = sum(W.detach().norm(dim=1) for W in decoders)
    ranked = (z * weight).detach()
    kept = (
        ranked.topk(K, dim=1).values[:, -1:] if coder.config.kind == "topk" else ranked.flatten().topk(N * K).values[-1]
    )
    f = z.relu() * (ranked >= kept)
    loss, residuals = 0, []
    for xm, b, W in zip(xs, biases, decoders, strict=True):
        residuals.append(xm - f @ W - b)
        loss = loss + residuals[-1].square().sum(1).mean()
    e = torch.cat(residuals, 1).detach()
    k_aux = min(E * coder.n_sources // 2, int(dead.sum()))
    top = ranked.masked_fill(~dead, -torch.inf).topk(k_aux, dim=1).indices
    acts = torch.zeros_like(z).scatter(1, top, z.gather(1, top).relu())
    aux = (e - acts @ coder.W_dec).square().sum() / (e - e.mean(0)).square().sum()
    return loss + coder.config.aux * aux


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_by_definition(kind):
    coder, x = made(kind), torch.randn(N, E * M, dtype=torch.float64)
    dead = torch.arange(S) % 4 == 0
    ours = coder.loss(x, x, dead).total
    theirs = slow_loss(coder, x, dead)
    torch.testing.assert_close(ours, theirs)
    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    pairs = (torch.autograd.grad(loss, [getattr(coder, n) for n in names]) for loss in (ours, theirs))
    for mine, slow in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, slow)


@pytest.mark.parametrize("kind", KINDS)
def test_one_source_is_the_autoencoder(kind):
    cross, plain, x = made(kind, 1), made(kind, 1), torch.randn(N, E, dtype=torch.float64)
    plain.n_sources, plain.source_scales = 1, None
    assert torch.equal(cross.loss(x, x).total, plain.loss(x, x).total)
    assert torch.equal(cross.norms, torch.linalg.vector_norm(plain.W_dec.detach(), dim=1))


@pytest.mark.parametrize("kind", (*KINDS, "matryoshka"))
def test_folded_and_saved_it_computes_the_same(kind, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(200, E * M) * torch.tensor([1.0, 5.0, 0.2]).repeat_interleave(E) + 0.3
    training = TrainingCoder(CoderSpec("+", coder=CoderConfig(kind=kind, d_sae=S, k=K)), CROSS, CROSS, x, x)
    training.coder.train(False)
    if kind != "topk":
        training.coder.threshold.fill_(0.3)
    scaled = (x * training.scale_in).unflatten(1, (M, E))
    torch.testing.assert_close((scaled - scaled.mean(0)).square().sum(2).mean(0), torch.ones(M))
    folded = training.folded()
    torch.testing.assert_close(folded(x), training.reconstruct(x), rtol=1e-4, atol=1e-4)
    picks, values = training.latents(x)
    torch.testing.assert_close(folded.encode(x), picks.dense(values) / training.scale_in.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded.source_norms.sum(1), torch.ones(S))
    save(folded, tmp_path, Provenance("m", CROSS.hook_name))
    back = slms.load_coder(tmp_path)
    assert architecture(back) == ("topk_crosscoder" if kind == "topk" else "jumprelu_crosscoder")
    assert torch.equal(back(x), folded(x))
    assert torch.equal(back.source_norms, folded.source_norms)


def test_what_only_one_model_writes_is_found():
    """Planted: 6 directions that only the base has, 6 of the second model only, 6 that both have."""
    torch.manual_seed(0)
    of_models = Site("cross", 0, parts=tuple(Site("residual", 0, of=of) for of in ("base", "routed")))
    directions = torch.nn.functional.normalize(torch.randn(2, 18, 16), dim=2)
    directions[0, 6:12], directions[1, :6] = 0, 0

    def batch(n=256):
        strength = (torch.rand(n, 18) < 0.08) * (1 + torch.rand(n, 18))
        return {of_models.name: torch.cat([strength @ directions[0], strength @ directions[1]], 1)}

    x = batch(2000)[of_models.name]
    training = TrainingCoder(
        CoderSpec("residual.0", coder=CoderConfig(kind="batch_topk", d_sae=36, k=2)), of_models, of_models, x, x
    )
    coder = fit(training, iter(batch, None), 600, CoderOptimizerConfig(lr=3e-3)).folded()
    shares = coder.source_norms / coder.source_norms.sum(1, keepdim=True)
    both = torch.nn.functional.normalize(torch.cat(list(directions), 1), dim=1)
    near = (both @ torch.nn.functional.normalize(coder.W_dec, dim=1).T).max(1)
    second, found = shares[near.indices, 1].view(3, 6), (near.values > 0.9).view(3, 6)
    assert (found.sum(1) >= 4).all()
    wanted = torch.tensor([[0.0], [1.0], [0.5]])
    assert ((second - wanted).abs() < 0.1)[found].all()


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "gated"])
def test_other_kinds_are_refused(kind):
    with pytest.raises(ValueError, match=f"coder.kind is '{kind}'; a crosscoder's must be topk"):
        build_coder(CoderConfig(kind=kind, d_sae=S, k=K), E).read_sources(2)
