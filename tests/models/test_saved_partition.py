"""The partition that a model directory holds is that of the model."""

from transformers import GPTNeoForCausalLM

import slms
from slms.models.saved_partition import saved_partitions
from tests.tiny import tiny_config


def test_every_neurons_pathway_is_read_from_the_weights(tmp_path):
    dense = GPTNeoForCausalLM(tiny_config(50, intermediate_size=22))
    routed = slms.route(
        dense, slms.RoutingConfig(n_pathways=4, k=2, every_n_layers=1, partition="random", router_init="random")
    )
    slms.save_model(routed, None, tmp_path / "model")
    found = saved_partitions(tmp_path / "model")
    assert list(found) == ["L0.mlp", "L1.mlp"]
    for mlp, labels in zip((h.mlp for h in routed.transformer.h), found.values(), strict=True):
        for p, (a, b) in enumerate(zip(mlp.offsets, mlp.offsets[1:], strict=False)):
            assert sorted(mlp.permutation[a:b].tolist()) == (labels == p).nonzero()[:, 0].tolist()
    dense.save_pretrained(tmp_path / "dense")
    assert saved_partitions(tmp_path / "dense") == {}
