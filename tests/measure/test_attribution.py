"""The parts of a latent's rise equal those read from each pathway's output, and their nulls those of shuffling."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

import slms
from slms.data.text import Blocks
from slms.measure.attribution import PathwayAttribution, _largest, contributing_layers
from slms.measure.features import read_uses
from slms.models.routed import record_routes
from slms.models.sites import Site, read_sites
from slms.sae.baselines import FixedCoder
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from tests.tiny import tiny_config

S, T = 15, 16
SITE = Site("residual", 1)


@pytest.fixture(scope="module")
def place():
    """A routed model of two layers (3 pathways, 2 chosen), text, a coder of its residual stream, what they write."""
    torch.manual_seed(0)
    config = tiny_config(29, max_position_embeddings=T, intermediate_size=13, initializer_range=0.3)
    dense = GPTNeoForCausalLM(config)
    ids = np.random.default_rng(0).integers(0, 29, (20, T)).astype(np.uint16)
    torch_ids = torch.from_numpy(ids.astype("int64"))
    routed = slms.route(dense, slms.RoutingConfig(n_pathways=3, k=2, every_n_layers=1), calibration=torch_ids).eval()
    blocks = Blocks(ids, np.arange(20 * T).reshape(20, T).astype(np.int32), {}, {})
    x = read_sites(routed, torch_ids, [SITE])[SITE.name]
    coder = FixedCoder(build_coder(CoderConfig(kind="topk", d_sae=S, k=2), 8), SITE, SITE, x, x)
    attribution = PathwayAttribution(routed, SITE, coder.coder.W_enc.detach())
    for uses in read_uses(routed, blocks, coder, torch.tensor([0]), 7):
        attribution.update(uses)
    return routed, torch_ids, coder, attribution.compute()


@pytest.fixture(scope="module")
def dense(place):
    """Whether each latent is used [n, s], what is read [n, d], and each pathway's output [layer][p] [n, d]."""
    routed, ids, coder, _ = place
    x = read_sites(routed, ids, [SITE])[SITE.name].double()
    outputs = [
        [read_sites(routed, ids, [Site("pathway", i, p)])[f"pathway.{i}.{p}"].double() for p in range(3)]
        for i in range(2)
    ]
    with record_routes(routed) as routes:
        routed(ids)
    rows = ids.flatten() != 0
    on = coder.coder.encode(x.float())[rows].detach() > 0
    return (
        on,
        x[rows],
        [[y[rows] for y in layer] for layer in outputs],
        [routes[f"L{i}.mlp"].chosen[rows] for i in range(2)],
    )


def test_parts_are_those_of_the_pathways_outputs(place, dense):
    _, _, coder, attributions = place
    on, x, outputs, chosen = dense
    W = coder.coder.W_enc.detach().double()
    for layer, found in enumerate(attributions):
        assert found.layer == layer
        for s in range(S):
            used = on[:, s]
            if not used.any():
                assert found.part[:, s].isnan().all()
                continue
            rise = (x[used] @ W[s]).mean() - (x @ W[s]).mean()
            for p in range(3):
                pushed = outputs[layer][p] @ W[s]
                excess = pushed[used].mean() - pushed.mean()
                assert float(found.part[p, s]) == pytest.approx(float(excess / rise), rel=1e-4, abs=1e-6)
                lift = chosen[layer][used, p].double().mean() / chosen[layer][:, p].double().mean()
                assert float(found.lift[p, s]) == pytest.approx(float(lift), rel=1e-6)


def test_the_null_is_that_of_shuffled_tokens(place, dense):
    _, _, coder, attributions = place
    on, _, outputs, _ = dense
    W = coder.coder.W_enc.detach().double()
    s = int(on.sum(0).argmax())
    pushed, used = outputs[0][1] @ W[s], on[:, s]
    generator = torch.Generator().manual_seed(0)
    null = torch.stack([pushed[torch.randperm(len(pushed), generator=generator)][used].mean() for _ in range(4000)])
    wanted = (pushed[used].mean() - null.mean()) / null.std()
    assert float(attributions[0].z[1, s]) == pytest.approx(float(wanted), rel=0.06)


def test_concentration():
    of_neuron = torch.eye(4, dtype=torch.float64).repeat(2, 1)  # neurons i and i + 4 move latent i alone
    together, apart = torch.tensor([0, 1, 2, 3] * 2), torch.arange(8)
    assert _largest(of_neuron, together) == 1 and _largest(of_neuron, apart) == 0.5


def test_learned_groups_are_compared_with_random_ones(place):
    for found in place[3]:
        c = found.concentration
        assert 1 / 3 < c.null_mean < 1 and c.null_sd > 0
        assert c.z == pytest.approx((c.value - c.null_mean) / c.null_sd)


SITES = [
    (Site("residual", 1), [0, 1]),
    (Site("residual", 0), [0]),
    (Site("mlp_out", 1), [1]),
    (Site("mlp_in", 1), []),
    (Site("pathway", 1, 0), []),
]


@pytest.mark.parametrize(("site", "layers"), SITES)
def test_only_layers_that_add_to_what_is_read(place, site, layers):
    assert contributing_layers(place[0], site) == layers
