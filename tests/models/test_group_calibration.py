"""Layers that share a router: their pathways are aligned, and the router is fitted to what all of them write."""

from dataclasses import replace
from itertools import permutations

import torch

import slms
from slms.models.anatomy import find_mlps
from slms.models.calibration import layer_inputs, pathway_statistics
from slms.models.convert import in_fp32
from slms.models.group_calibration import pairing
from slms.models.routed import routed_modules
from slms.models.weights import read_mlp
from tests.models.test_groups import CONFIG, PLACES


def test_pairing_is_the_best_of_all_permutations():
    generator = torch.Generator().manual_seed(0)
    led, norms = (torch.rand(50, 5, generator=generator) for _ in range(2))
    a, b = ((x - x.mean(0)) / x.std(0, correction=0) for x in (led, norms))
    value = lambda order: sum((b[:, i] * a[:, j]).mean().item() for i, j in enumerate(order))  # noqa: E731
    best = max(permutations(range(5)), key=value)
    assert pairing(led, norms, [4] * 5, 0).tolist() == list(best)
    kept = max((o for o in permutations(range(5)) if o[0] == 0 and {o[1], o[2]} == {1, 2}), key=value)
    assert pairing(led, norms, [4, 4, 4, 3, 3], 1).tolist() == list(kept)
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    assert pairing(led, led[:, shuffled], [4] * 5, 0).tolist() == shuffled.tolist()


def test_calibration_aligns_followers_and_fits_the_router_to_all_layers(tiny, tokens):
    model, calibration = tiny("llama"), tokens(16, 32)
    config = replace(CONFIG, router_layers=3, gate="unit", mean_compensation=True)
    routed, alone = (slms.route(model, replace(config, router_layers=n), calibration) for n in (3, 1))
    norms, unaligned = {}, {}
    with torch.no_grad():
        for i, x in layer_inputs(model, [0, 1, 2], calibration):
            for made, found in ((routed, norms), (alone, unaligned)):
                mlp = routed_modules(made)[PLACES[i]]
                dense = in_fp32(read_mlp(find_mlps(model)[i])).in_order(mlp.permutation)
                statistics = pathway_statistics(dense, x, mlp.offsets, centred=True)
                torch.testing.assert_close(mlp.mean_out, statistics.mean)
                found[i] = statistics.norms
            if i == 0:
                scores = routed_modules(routed)["L0.mlp"].router(x)

    def together(found):
        z = {i: (x - x.mean(0)) / x.std(0) for i, x in found.items()}
        return [(z[0] * z[i]).mean().item() for i in (1, 2)]

    assert all(a > b for a, b in zip(together(norms), together(unaligned), strict=True))
    target = torch.stack(list(norms.values())).square().sum(0).sqrt()
    fitted = lambda of: torch.corrcoef(torch.stack([scores.flatten(), of.flatten()]))[0, 1]  # noqa: E731
    assert fitted(target) > fitted(norms[0])
