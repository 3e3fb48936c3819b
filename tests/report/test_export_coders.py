"""The cards of exported coders are read by the hub, and name the language model if the hub has it."""

from huggingface_hub import ModelCard

from slms.report.export_coders import neuronpedia_card, set_card

BASE, COMMAND = "roneneldan/TinyStories-1M", "eval.py export /secret/place/run --out=/secret/place/new"


def test_a_hub_id_is_the_base_and_the_command_holds_no_place():
    cards = [
        ModelCard(set_card(BASE, "run", 8, 256, [], COMMAND)),
        ModelCard(neuronpedia_card(BASE, "run", {"v1/a/b": (256, 3)}, 4096, "stories (validation)", COMMAND)),
    ]
    for card in cards:
        assert card.data.base_model == BASE and f"`{BASE}`" in card.content and "sparse-autoencoder" in card.data.tags
        assert "eval.py export run --out=new" in card.content and "/secret" not in card.content
        assert "## Licence" in card.content and "\n\n\n" not in card.content
