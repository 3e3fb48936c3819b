"""A run's objective follows from whether it routes; one that cannot be, or an option without effect, is refused."""

import pytest

from slms.lit.distill import DistillConfig


@pytest.mark.parametrize("anneal", [0.0, -1.0, 1.5])
def test_anneal_out_of_range_is_refused(anneal):
    with pytest.raises(ValueError, match=r"model.distill.anneal is .*; it must lie in \(0, 1\]"):
        DistillConfig(anneal=anneal)


@pytest.mark.parametrize(
    "given, routing, lm, logits",
    [
        ({}, True, 0.0, 1.0),
        ({}, False, 1.0, 0.0),
        ({"mlp": 1.0}, True, 0.0, 1.0),
        ({"logits": 2.0}, True, 0.0, 2.0),
        ({"logits": 0.0}, True, 1.0, 0.0),
        ({"lm": 0.2}, True, 0.2, 1.0),
        ({"logits": 1.0}, False, 1.0, 1.0),
        ({"lm": 0.0, "logits": 0.0, "mlp": 1.0}, True, 0.0, 0.0),
        ({"lm": 1.0, "anneal": 0.5}, True, 1.0, 1.0),
    ],
)
def test_weights_by_default(given, routing, lm, logits):
    found = DistillConfig(**given).resolved(routing)
    assert (found.lm, found.logits) == (lm, logits)
    assert found.resolved(routing) == found  # as when a run's config.yaml is read again


@pytest.mark.parametrize(
    "given, routing, message",
    [
        ({"lm": -1.0}, True, "distill.lm is -1.0; it must not be negative"),
        ({"lm": 0.0, "logits": 0.0}, True, "one must be positive"),
        ({"lm": 0.0}, False, "one must be positive"),
        ({"anneal": 0.5}, False, "anneal is 0.5; it needs a positive model.distill.logits or mlp"),
        ({"anneal": 0.5}, True, "anneal is 0.5 and lm 0"),
        ({"cache_dir": "x"}, True, "cache_dir is x and cache false"),
        ({"cache": True}, False, "cache is true, logits 0.0 and mlp 0.0"),
        ({"cache": True, "mlp": 1.0}, True, "cache is true, logits 1.0 and mlp 1.0"),
    ],
)
def test_what_cannot_be_is_refused(given, routing, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**given).resolved(routing)
