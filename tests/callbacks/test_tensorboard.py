"""The helpers for TensorBoard write tables that no token can break, and flat hyper-parameters."""

from dataclasses import replace

from slms.callbacks.tensorboard import flatten, top_token_table
from slms.measure.schema import Token


def test_no_token_breaks_the_table(fit):
    results = fit.callbacks["results"].results
    odd = [Token(text, 1, 2.0) for text in ("|", "`", "\n", " |`| ", "\\|")]
    pathways = [replace(pathway, top_tokens=odd) for pathway in results.pathways["L0.mlp"]]
    lines = top_token_table(pathways, results.labels).splitlines()
    assert len(lines) == 2 + len(pathways)
    bars = [line.replace("\\|", "").count("|") for line in lines]
    assert len(set(bars)) == 1
    assert all(line.count("`") % 2 == 0 for line in lines)


def test_flatten_keeps_only_what_hparams_can_hold():
    config = {"a": {"b": 1, "c": None, "d": {"e": [1, 2]}}, "f": "x", "g": True, "h": 0.5}
    assert flatten(config) == {"a.b": 1, "a.d.e": "[1, 2]", "f": "x", "g": True, "h": 0.5}
