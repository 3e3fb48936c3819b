"""The card of a saved model: metadata that the hub's own client reads, nothing of this machine."""

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, metadata_load

from slms.models.base import load_base
from slms.models.card import model_card, portable
from slms.models.convert import route
from slms.models.io import save_model
from slms.routing import RoutingConfig
from tests.hub_folder import card_of

CONFIG = RoutingConfig(n_pathways=5, k=2, router="linear")


def test_a_routed_model_says_what_it_is_made_of(tiny, tokens, tmp_path):
    routed = route(tiny("llama"), CONFIG, tokens(4, 16))
    save_model(routed, None, tmp_path / "m")
    metadata = metadata_load(tmp_path / "m" / "README.md")
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "text-generation"
    assert {"slms", "routed"} <= set(metadata["tags"]) and "model-index" not in metadata
    text = (tmp_path / "m" / "README.md").read_text()
    assert "`L0.mlp`, `L2.mlp`: each is split into 5 pathways" in text
    assert "the best 2" in text and "import slms" in text
    assert f"{sum(p.numel() for p in routed.parameters()):,} parameters" in text


def test_a_saved_model_is_ready_for_upload(tiny, tokens, tmp_path):
    _, tokenizer = load_base("stories-1m")
    save_model(route(tiny("llama"), CONFIG, tokens(4, 16)), tokenizer, tmp_path / "m")
    assert card_of(tmp_path / "m")["library_name"] == "transformers"


def test_a_dense_model_needs_no_slms(tiny, tmp_path):
    text = model_card(tiny("gpt2").to(torch.bfloat16))
    assert "routed" not in text and "import slms" not in text and "bfloat16" in text


@pytest.mark.parametrize(
    ("base", "in_metadata", "in_words"),
    [
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("/home/me/models/mine", None, "`mine`"),
        ("stories-1m", None, "`stories-1m`"),
    ],
)
def test_only_hub_ids_are_metadata_and_no_path_is_told(tiny, base, in_metadata, in_words):
    card = ModelCard(model_card(tiny("gpt2"), base=base, corpus=base))
    assert card.data.base_model == in_metadata and card.data.to_dict().get("datasets") == (
        [in_metadata] if in_metadata else None
    )
    assert in_words in card.text and "/home" not in card.content


def test_numbers_become_the_model_index(tiny):
    result = EvalResult("text-generation", "stories", "stories", "perplexity", 2.5)
    card = ModelCard(model_card(tiny("gpt2"), name="mine", results=[result], measured="| a |"))
    (found,) = card.data.eval_results
    assert (found.metric_type, found.metric_value, card.data.model_name) == ("perplexity", 2.5, "mine")
    assert "## Measured\n\n| a |" in card.content


def test_a_command_line_with_an_open_quote_is_still_cut():
    assert "/tmp" not in portable("train.py --name 'x /tmp/secret/a")
