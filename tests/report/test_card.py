"""The card of a run shows its measured numbers, and nothing of the machine it ran on."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from transformers import GPT2Config, GPT2LMHeadModel

from slms.measure.rows import by_place
from slms.models.convert import route
from slms.report.card import run_card
from slms.routing import RoutingConfig


def tiny_model():
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_inner=8, n_positions=16)
    return route(GPT2LMHeadModel(config).eval(), RoutingConfig(n_pathways=4, k=2, router_init="random"), None)


@pytest.fixture
def results(results_factory):
    return results_factory(layers=(0, 2), n_pathways=4)


def test_the_card_holds_the_numbers_of_the_results_file(results):
    results = replace(results, run=replace(results.run, command="python train.py --output_dir=/secret/place/runs"))
    card = ModelCard(run_card(tiny_model(), results))
    loss = results.losses.model
    assert f"| this model | {loss.nats:.4f} |" in card.content
    (found,) = card.data.eval_results
    assert found.metric_value == round(loss.perplexity, 4) and card.data.model_name == results.run.name
    for place, row in by_place(results.rows, "purity").items():
        apart = f"{row.difference:+.3f}±.010".replace("0.", ".")
        assert f"| {place.removesuffix('.mlp')} | {row.value:.3f} | {apart} |" in card.content
    for row in by_place(results.rows, "si", "pos").values():
        assert f"| {row.value:.3f} | {f'{row.difference:+.3f}±.010'.replace('0.', '.')} |" in card.content
    assert "--output_dir=runs" in card.content and "/secret" not in card.content


def test_a_local_corpus_is_named_without_its_place(results):
    data = replace(results.data, source="local", name="/secret/place/text.txt")
    content = run_card(tiny_model(), replace(results, data=data))
    assert "text.txt" in content and "/secret" not in content


def test_a_dense_run_has_losses_only(results):
    dense = replace(results, rows=[], pathways={}, routing=None, compute=None)
    assert "purity" not in run_card(tiny_model(), dense)
