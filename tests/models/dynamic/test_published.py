"""On real models, each published rule has the perplexity of the transcription of its authors' code, within .1 %.

`python -m pytest tests/models/dynamic/test_published.py -s` prints the table; the log has one of more tokens.
"""

import copy
import math

import pytest
import torch

import slms
from slms.data.text import Blocks, encode
from slms.measure.dynamick import measure_quality, share_out, under_rule
from slms.models.dynamic import set_densities
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from tests.models.dynamic import transcriptions

T = 128
"""tokens of a block"""


@pytest.fixture(scope="module", params=["stories260K", "tinystories656k"])
def real(request, shared_data):
    """A real model by name, with calibration and held-out token ids [b, t] of real stories."""
    model, tokenizer = slms.load_base(shared_data / request.param)

    def blocks(split, n):
        ids = []
        for story in (shared_data / "text" / f"tinystories_{split}.txt").read_text().split("<|endoftext|>"):
            ids += encode(story.strip(), tokenizer)
            if len(ids) >= n * T:
                return torch.tensor(ids[: n * T]).view(n, T)

    return request.param, model.eval(), blocks("train", 8), blocks("dev", 32)


def ours(model, rule, calibration, held_out, densities=None):
    """Perplexity under our rule, at densities by place, or as published at .5."""
    under = under_rule(model, rule, calibration)
    share_out(under, "published", 0.5) if densities is None else set_densities(under, densities)
    quality = measure_quality(under, Blocks(held_out.numpy(), (held_out * 0).numpy(), {}, {}), 16)
    return math.exp(quality.loss.compute().value)


@pytest.mark.parametrize("rule", transcriptions.PUBLISHED)
@torch.no_grad()
def test_perplexity(real, rule):
    name, model, calibration, held_out = real
    xs, mlps = transcriptions.mlp_inputs(model, calibration), [layer.mlp for layer in model.model.layers]
    wanted = transcriptions.perplexity(model, held_out, transcriptions.PUBLISHED[rule](mlps, xs, 0.5))
    got = ours(model, rule, calibration, held_out)
    dense = transcriptions.perplexity(model, held_out)
    print(f"\n{rule}, {name}: ours {got:.4f}, transcription {wanted:.4f}, ratio {got / wanted:.5f}, dense {dense:.4f}")
    assert got == pytest.approx(wanted, rel=1e-3) and got > dense


@torch.no_grad()
def test_cats_of_a_histogram(real):
    """The authors' histogram rounds a threshold down by up to .002: ours at the densities that it really keeps."""
    _, model, calibration, held_out = real
    xs, mlps = transcriptions.mlp_inputs(model, calibration), [layer.mlp for layer in model.model.layers]
    histogram, densities = transcriptions.cats_histogram, {}
    for i, (mlp, x, t) in enumerate(zip(mlps, xs, histogram(mlps, xs, 0.5), strict=True)):
        densities[f"L{i}.mlp"] = (transcriptions.gates(mlp, x).abs() > t).float().mean().item()
    assert all(0.5 <= density < 0.52 for density in densities.values())
    wanted = transcriptions.perplexity(model, held_out, transcriptions.cats(mlps, xs, 0.5, histogram))
    assert ours(model, "cats", calibration, held_out, densities) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("tau", [0.5, 0.9])
@torch.no_grad()
def test_d2dmoe(real, tau):
    """Rule `threshold` on experts and routers of ours; prompts too run what is chosen."""
    name, model, calibration, held_out = real
    config = slms.RoutingConfig(
        n_pathways=16, every_n_layers=1, router="linear", gate="unit", rule="threshold", tau=tau
    )
    routed = slms.route(model, config, calibration)
    functions = []
    for layer, module in zip(model.model.layers, routed_modules(routed, RoutedMLP).values(), strict=True):
        mlp = copy.deepcopy(layer.mlp)  # its neurons in the order of the experts
        for matrix, weight in (
            (mlp.gate_proj, module.W_gate),
            (mlp.up_proj, module.W_in),
            (mlp.down_proj, module.W_out.T),
        ):
            matrix.weight.copy_(weight)
        fitted = module.router.norm_shift, module.router.norm_scale
        functions.append(transcriptions.d2dmoe(mlp, module.router, *fitted, module.offsets, tau))
    wanted = transcriptions.perplexity(model, held_out, functions)
    got, dense = transcriptions.perplexity(routed, held_out), transcriptions.perplexity(model, held_out)
    print(f"\nd2dmoe, τ {tau}, {name}: ours {got:.4f}, transcription {wanted:.4f}, dense {dense:.4f}")
    assert got == pytest.approx(wanted, rel=1e-3) and abs(got - dense) > 0.01 * dense
