"""Random sets match their unit in size and contribution, and are random otherwise."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slms import RoutingConfig, route
from slms.data.text import Blocks
from slms.measure.random_sets import TOLERANCE, random_sets, read_neurons
from slms.models.base import BaseConfig, init_base
from slms.models.routed import record_routes, routed_modules


def test_contribution_is_the_mean_size_times_the_norm_of_the_row():
    net = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=2, n_heads=2, vocab=40)).eval()
    ids = np.random.default_rng(0).integers(0, 40, (5, 12)).astype(np.uint16)
    found = read_neurons(net, Blocks(ids, None, {}, {}), ["L0.mlp", "L1.mlp"], 2)
    seen = {}
    for layer in range(2):
        proj = net.transformer.h[layer].mlp.c_proj
        proj.register_forward_pre_hook(lambda _, args, layer=layer: seen.__setitem__(layer, args[0].flatten(0, 1)))
    with torch.no_grad():
        net(torch.from_numpy(ids.astype(np.int64)))
    for layer in range(2):
        norms = net.transformer.h[layer].mlp.c_proj.weight.norm(dim=0)
        neurons = found[f"L{layer}.mlp"]
        assert torch.allclose(neurons.mean, seen[layer].mean(0), atol=1e-6)
        assert torch.allclose(neurons.contribution.float(), seen[layer].abs().mean(0) * norms, rtol=1e-4)


def test_sets_match_in_number_and_total():
    generator = torch.Generator().manual_seed(0)
    contribution = torch.rand(256, generator=generator) ** 3
    unit_of = contribution.argsort().argsort() // 8  # the hardest: the last unit has the largest neurons
    found = random_sets(contribution, unit_of, 64, generator)
    assert found.sets.shape == (64, 256) and (found.sets.sum(1) == 8).all()
    assert torch.bincount(found.of_unit).tolist() == [2] * 32, "every unit in turn"
    errors = []
    for drawn, unit in zip(found.sets, found.of_unit, strict=True):
        wanted = float(contribution[unit_of == unit].sum())
        errors.append(abs(float(contribution[drawn].sum()) / wanted - 1))
    middle = [e for e, unit in zip(errors, found.of_unit, strict=True) if 4 <= unit < 31]
    assert max(middle) <= TOLERANCE + 1e-6 and abs(max(errors) - found.error) < 1e-6


def test_ordinary_sets_are_random_draws():
    """With equal contributions nothing is swapped: each neuron is in a set as often as any, also the unit's own."""
    found = random_sets(torch.ones(64), torch.arange(64) // 8, 800, torch.Generator().manual_seed(1))
    often = found.sets.sum(0).double() / 800
    assert found.error == 0 and abs(found.own - 1 / 8) < 0.02 and (often - 1 / 8).abs().max() < 0.06


def test_without_units_or_sets_nothing_is_drawn():
    for unit_of, n in ((torch.arange(8) // 4, 0), (torch.full((8,), -1), 0)):
        found = random_sets(torch.ones(8), unit_of, n, torch.Generator())
        assert found.sets.shape == (0, 8) and found.error == 0


def test_sets_keep_to_their_units_group():
    """Six heads of four numbers in two groups, whose contributions are far apart."""
    unit_of, generator = torch.arange(24) // 4, torch.Generator().manual_seed(2)
    contribution = torch.rand(24, generator=generator) + 9 * (unit_of > 2)
    found = random_sets(contribution, unit_of, 60, generator, group_of=unit_of // 3)
    assert (found.sets.sum(1) == 4).all()
    for drawn, unit in zip(found.sets, found.of_unit, strict=True):
        assert (unit_of[drawn] // 3 == unit // 3).all()
    assert found.own < 0.6, "the heads beside it are drawn too"


def test_the_neurons_of_heads_are_the_numbers_that_they_pass_on():
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 40, (5, 12)).astype(np.uint16)
    routing = RoutingConfig(target="attention", k_heads=1, router="linear", layers=[1])
    net = route(LlamaForCausalLM(config), routing, torch.from_numpy(ids.astype(np.int64))).eval()
    heads, seen = routed_modules(net)["L1.attn"], []
    heads.out.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad(), record_routes(net) as routes:
        net(torch.from_numpy(ids.astype(np.int64)))
    (passed,) = seen
    assert not passed.view(-1, 4, 2)[~routes["L1.attn"].chosen].any()
    found = read_neurons(net, Blocks(ids, None, {}, {}), ["L1.attn", "L1.mlp"], 5)
    assert torch.allclose(found["L1.attn"].mean, passed.mean(0), atol=1e-6)
    wanted = passed.abs().mean(0) * heads.out.weight.norm(dim=0)
    assert torch.allclose(found["L1.attn"].contribution.float(), wanted, rtol=1e-4)
    assert found["L1.mlp"].mean.shape == (8,)
