import doctest
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from slms.models import partition as module
from slms.models.partition import partition, pathway_offsets

KINDS = ("contiguous", "random", "kmeans", "coactivation", "learned")
SHARED = Path(os.environ.get("SLMS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def planted(f: int = 44, p: int = 4, n: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Neurons of which those of one group fire on the same tokens: activations, W_out, the group of each neuron."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(f) % p
    group = group[torch.randperm(f, generator=generator)]
    topic = torch.randint(0, p, (n,), generator=generator)
    acts = torch.randn(n, f, generator=generator) * torch.where(topic[:, None] == group, 1.0, 0.2)
    return acts, torch.randn(f, 6, generator=generator), group


def given(acts: torch.Tensor, W_out: torch.Tensor, k: int = 1) -> dict:
    """What the kinds that need calibration take, with inputs from which the activations follow."""
    return {"W_out": W_out, "x": acts[:, :12].abs(), "k": k}


def dropped_energy(acts: torch.Tensor, W_out: torch.Tensor, order: torch.Tensor, offsets: tuple, k: int) -> float:
    """E‖Σ of dropped pathways‖² / E‖y‖² when each token keeps the k pathways of largest output norm."""
    outputs = torch.stack([acts[:, order[a:b]] @ W_out[order[a:b]] for a, b in pairwise(offsets)], 1)
    norms = outputs.norm(dim=-1)
    keep = torch.zeros_like(norms).scatter(1, norms.topk(k, dim=1).indices, 1.0)
    dropped = (outputs * (1 - keep)[..., None]).sum(1)
    return (dropped.square().sum() / outputs.sum(1).square().sum()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("f", "p"), [(44, 4), (43, 5), (7, 7), (9, 1), (172, 16)])
def test_every_kind_is_a_permutation_with_sizes_differing_by_at_most_one(kind, f, p):
    acts, W_out, _ = planted(f, p, n=80)
    order, offsets = partition(kind, torch.randn(f, 6), acts, p, 3, **given(acts, W_out))
    assert order.dtype == torch.int64 and sorted(order.tolist()) == list(range(f))
    sizes = [b - a for a, b in pairwise(offsets)]
    assert len(sizes) == p and sum(sizes) == f and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    acts, W_out, _ = planted()
    W_in = torch.randn(44, 6)
    first, again, other = (partition(kind, W_in, acts, 4, seed, **given(acts, W_out)).permutation for seed in (1, 1, 2))
    assert torch.equal(first, again)
    if kind == "random":
        assert not torch.equal(first, other)


def test_contiguous_keeps_the_order():
    assert partition("contiguous", torch.randn(10, 3), None, 4).permutation.tolist() == list(range(10))


def test_coactivation_finds_neurons_that_fire_together():
    acts, W_out, group = planted()
    order, offsets = partition("coactivation", torch.randn(44, 6), acts, 4, W_out=W_out)
    for a, b in pairwise(offsets):
        assert len(set(group[order[a:b]].tolist())) == 1


def test_kmeans_finds_planted_rows_and_reads_the_gate_of_a_gated_mlp():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(40) % 4
    rows = 5 * torch.randn(4, 12, generator=generator)[group] + 0.1 * torch.randn(40, 12, generator=generator)
    noise = 0.1 * torch.randn(40, 12, generator=generator)
    scale = 1 + torch.rand(40, 1, generator=generator)  # directions matter, lengths do not
    for W_in, W_gate in ((rows * scale, None), (noise, rows)):
        order, offsets = partition("kmeans", W_in, None, 4, W_gate=W_gate)
        for a, b in pairwise(offsets):
            assert len(set(group[order[a:b]].tolist())) == 1


@pytest.mark.parametrize("kind", ["coactivation", "learned"])
def test_shared_pathways_take_the_largest_mean_contributions(kind):
    acts, W_out, _ = planted(f=43, p=4)
    hot = torch.tensor([3, 11, 20, 29, 41, 5, 6, 7, 8, 9, 42])
    acts[:, hot] += 20.0 / W_out[hot].norm(dim=1)
    order, offsets = partition(kind, torch.randn(43, 6), acts, 4, n_shared=1, **given(acts, W_out, 2))
    assert set(order[: offsets[1]].tolist()) == set(hot.tolist())
    assert sorted(order.tolist()) == list(range(43))


def test_dead_neurons_are_placed_without_a_nan():
    acts, W_out, group = planted()
    dead = torch.arange(44) < 10
    acts[:, dead] = 0.0
    order, offsets = partition("coactivation", torch.randn(44, 6), acts, 4, W_out=W_out)
    assert sorted(order.tolist()) == list(range(44))
    for a, b in pairwise(offsets):
        alive = order[a:b][~dead[order[a:b]]]
        assert len(set(group[alive].tolist())) <= 2
    silent = partition("coactivation", torch.randn(44, 6), torch.zeros(9, 44), 4, W_out=W_out)
    assert sorted(silent.permutation.tolist()) == list(range(44))


def test_what_cannot_be_partitioned_says_why():
    with pytest.raises(ValueError, match=r"`routing.n_pathways` is 9; it must be at most the MLP's d_ff \(8\)"):
        partition("random", torch.randn(8, 3), None, 9)
    with pytest.raises(ValueError, match=r"`routing.partition` is coactivation; it needs calibration tokens"):
        partition("coactivation", torch.randn(8, 3), None, 2)
    with pytest.raises(ValueError, match=r"`routing.partition` is learned; it needs calibration tokens"):
        partition("learned", torch.randn(8, 3), torch.randn(9, 8), 2, W_out=torch.randn(8, 3))
    with pytest.raises(ValueError, match=r"`routing.partition` is 'metis'"):
        partition("metis", torch.randn(8, 3), None, 2)


@pytest.mark.skipif(not (SHARED / "gptneo_char_anton3090").is_dir(), reason="needs the real models of SLMS_SHARED_DATA")
def test_clustering_a_real_relu_model_loses_less_than_slices():
    """Measured on 2 layers and 8k tokens: contiguous .33, random .33, kmeans .25, coactivation .18, learned .19."""
    from safetensors.torch import load_file

    tensors = load_file(SHARED / "gptneo_char_anton3090" / "model.safetensors")
    prefix = next(k for k in tensors if k.endswith("h.0.mlp.c_fc.weight")).removesuffix("c_fc.weight")
    W_in, b_in = tensors[prefix + "c_fc.weight"].float(), tensors[prefix + "c_fc.bias"].float()
    W_out = tensors[prefix + "c_proj.weight"].float().T.contiguous()
    ln = prefix.replace("mlp.", "ln_2.")
    tokens, positions = (tensors[k].float() for k in tensors if k.endswith(("wte.weight", "wpe.weight")))
    generator = torch.Generator().manual_seed(0)
    embedded = torch.cat([(tokens[:, None] + positions).flatten(0, 1)])
    embedded = embedded[torch.randperm(len(embedded), generator=generator)[:1500]]
    x = torch.nn.functional.layer_norm(embedded, embedded.shape[-1:], tensors[ln + "weight"], tensors[ln + "bias"])
    acts = torch.relu(x @ W_in.T + b_in)
    held_out = {}
    for kind in KINDS:
        order, offsets = partition(kind, W_in, acts[:750], 16, W_out=W_out, x=x[:750], k=4)
        held_out[kind] = dropped_energy(acts[750:], W_out, order, offsets, k=4)
    for kind in ("coactivation", "learned"):
        assert held_out[kind] < 0.75 * min(held_out["contiguous"], held_out["random"])
        assert held_out[kind] < held_out["kmeans"] < max(held_out["contiguous"], held_out["random"])


def test_offsets():
    assert np.diff(pathway_offsets(172, 16)).tolist() == [11] * 12 + [10] * 4
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_single_neurons_are_not_grouped_and_the_shared_ones_contribute_most(kind):
    acts, W_out, _ = planted()
    order = partition(kind, W_out, acts, len(W_out), n_shared=3, **given(acts, W_out, 4)).permutation
    assert sorted(order.tolist()) == list(range(len(W_out)))
    if kind in ("coactivation", "learned"):
        mean = (acts.abs() * W_out.norm(dim=1)).mean(0)
        assert set(order[:3].tolist()) == set(mean.topk(3).indices.tolist())
        assert order[3:].tolist() == sorted(order[3:].tolist())
