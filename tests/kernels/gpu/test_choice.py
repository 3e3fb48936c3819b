"""The exact choice in Triton: of signed scores, and a second time by activations, against the reference."""

import math

import pytest
import torch

from slms.kernels import router
from slms.kernels.activations import ACTIVATIONS
from slms.kernels.gate_reference import keep_reference
from slms.kernels.gpu.choice import keep_neurons, top_k

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("p", [1, 16, 300, 1536])
def test_the_largest_of_signed_scores(p):
    """Random scores, equal ones, zeros of both signs, neighbours, all magnitudes: exact to the last bit."""
    generator = torch.Generator().manual_seed(p)
    scores = torch.randn(6, p, generator=generator)
    scores[1] = scores[1].round()
    scores[2] = scores[2].sign() * 0.0
    scores[3] = -1 + torch.arange(p) * 2**-24
    scores[4] = scores[4].sign() * torch.logspace(-44, 38, p)
    scores[5, ::3] = -math.inf
    scores = scores.to(DEVICE)
    for k in {1, (p + 1) // 2, p}:
        assert torch.equal(top_k(scores, k), router.top_k(scores, k)), k


def test_groups_nan_and_no_token():
    scores = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.equal(top_k(scores, 2), router.top_k(scores, 2))
    scores[1, 2, 3] = math.nan
    chosen = top_k(scores, 1)
    assert chosen[1, 2].tolist() == [False, False, False, True] and chosen.sum(-1).eq(1).all()
    assert top_k(scores[:0], 2).shape == (0, 3, 4)


def test_the_largest_of_as_many_as_one_program_ranks():
    scores = torch.randn(1, 14336, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.equal(top_k(scores, 5000), router.top_k(scores, 5000))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("f", [7, 65])
def test_the_second_choice(make_gate_call, poison_new_tensors, f, held):
    """Of equal, infinite and NaN activations too; a token that chose all keeps all."""
    call = make_gate_call(6, 4, range(f + 1), f // 2, activation="relu", k_out=f // 4, held=held)
    generator = torch.Generator().manual_seed(f)
    gate, up = torch.randn(6, f, generator=generator), torch.randn(6, f, generator=generator).round()
    up[1, 2], up[2, 1], gate[1:3, 1:3] = math.inf, math.nan, 1.0
    chosen = torch.rand(6, f, generator=generator) < 0.5
    chosen[0], chosen[3], chosen[1:3, 1:3] = True, False, True
    call = call._replace(scale=call.scale.to(DEVICE), out_scale=torch.ones(f, device=DEVICE))
    call = call._replace(least_out=torch.tensor(1.0, device=DEVICE)) if held else call
    gate, up, chosen = gate.to(DEVICE), up.to(DEVICE), chosen.to(DEVICE)
    h = ACTIVATIONS["relu"](gate) * up
    wanted = keep_reference(h, chosen, call)
    poison_new_tensors()
    kept, hidden = keep_neurons(up, gate, chosen.view(torch.uint8), call)
    assert torch.equal(kept.view(torch.bool), wanted)
    torch.testing.assert_close(hidden, torch.where(wanted, h, 0), equal_nan=True)
    assert kept[0].all() and not kept[3].any()
