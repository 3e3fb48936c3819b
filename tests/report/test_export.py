"""Cards of exports: which layers are mixtures, and what llama.cpp found, or that it was not there."""

import pytest
from huggingface_hub import ModelCard
from transformers import LlamaConfig, LlamaForCausalLM

from slms.measure.gguf import GGUFComparison
from slms.models.convert import route
from slms.report.export import Origin, experts, gguf_card
from slms.routing import RoutingConfig
from tests.models.test_stock import SHAPE

BASE = "HuggingFaceTB/SmolLM2-135M"


def card(found):
    origin = Origin("mine", BASE, "/secret/text.txt", None)
    return ModelCard(gguf_card(LlamaForCausalLM(LlamaConfig(**SHAPE)), "m.gguf", "q8_0", found, origin))


def test_what_llama_cpp_found_is_told():
    ran = card(GGUFComparison("llama.cpp b1", 512, 10.0, 10.01, 0.99, 1.0, 1.0))
    assert ran.data.base_model == BASE and ran.data.get("library_name") == "gguf" and "mixture" not in ran.content
    assert "llama.cpp ran it on text.txt:" in ran.content and "perplexity 10, of the file 10.01" in ran.content
    assert 'input_ids, "gguf", type="q8_0")' in ran.content and "weights in Q8_0" in ran.content
    away = card(GGUFComparison("llama.cpp is away"))
    assert "llama.cpp was not at hand to run it." in away.content and "```text" not in away.content


@pytest.mark.parametrize(("layers", "named"), [([2], "layer 2"), ([1, 2, 3], "layers 1 to 3"), ([0, 2], "layers 0, 2")])
def test_the_layers_that_are_mixtures_are_named(layers, named):
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": 4}))
    routed = route(model, RoutingConfig(n_pathways=4, k=2, layers=layers, stock=True))
    assert experts(routed) == f"The MLPs of {named} are mixtures of 4 experts, of which each token runs 2."
