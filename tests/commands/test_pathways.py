"""`eval.py pathways` on units too fine to be described one by one; coarse ones are in the end-to-end tests."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import eval as evaluation
import slms
from slms.measure.classes import MOST_BY_CLASS
from slms.models.base import load_base
from slms.report.results import read_results

D_FF = MOST_BY_CLASS + 4


def test_single_neurons_have_loads_and_losses_and_no_figure(tmp_path, capsys):
    tokenizer = load_base("stories-1m").tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": D_FF, "num_hidden_layers": 2, "num_attention_heads": 2}
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    config = slms.RoutingConfig(router="gate", n_pathways=D_FF, k=D_FF // 2, every_n_layers=1)
    ids = torch.randint(3, 100, (4, 32))
    slms.save_model(slms.route(dense, config, ids), tokenizer, tmp_path / "model")
    flags = ["--n_tokens=1024", "--block_size=64", f"--output_dir={tmp_path / 'out'}"]
    evaluation.main(["pathways", str(tmp_path / "model"), *flags])
    (file,) = (tmp_path / "out").rglob("llm_routing_results.json")
    results = read_results(file)
    assert results.places == ["L0.mlp", "L1.mlp"] and not results.pathways
    density = {row.place: row.value for row in results.rows if row.metric == "density"}
    assert all(value == pytest.approx(0.5, abs=0.02) for value in density.values())
    assert not {"purity", "si"} & {row.metric for row in results.rows}
    assert {row.family for row in results.rows if row.metric == "choice_nats"} == {"oracle", "random_router"}
    assert not list((tmp_path / "out").rglob("*.png")) and "no figure" in capsys.readouterr().out
