"""The margins of probe items equal those of one forward pass per text and the product of its probabilities."""

import pytest
import torch

from slms import RoutingConfig, load_base, route
from slms.data.probe_tasks import Item, Task
from slms.measure.probes import Margins, margins, n_forwards, probe_rows
from slms.metrics.functional.intervals import proportion
from slms.models.base import BaseConfig, init_base

ITEMS = [
    Item("Once upon a time, there was a", " girl", " boys and girls"),
    Item("The dog near the houses", " is", " are"),
    Item("", "The dogs run.", "The dogs runs."),
    Item("A b A", "b", " b"),
]


@pytest.fixture(scope="module")
def model():
    net = init_base(BaseConfig(name="stories-1m", init="random", d_model=16, n_layers=2, n_heads=4), seed=1)
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_base(BaseConfig(name="stories-1m", init="random", d_model=16, n_layers=1, n_heads=4)).tokenizer


def total(model, tokenizer, text: str) -> float:
    """Log-probability of a whole text after the separator, one token at a time."""
    ids = [tokenizer.eos_token_id, *tokenizer(text).input_ids]
    out = 0.0
    for end in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:end]])).logits[0, -1].double()
        out += float(logits[ids[end]] - logits.exp().sum().log())
    return out


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_margins_equal_the_texts_probabilities(model, tokenizer, batch_size):
    done = []
    found = margins(model, tokenizer, ITEMS, batch_size, done.append)
    for item, nats, blind in zip(ITEMS, found.nats.tolist(), found.blind.tolist(), strict=True):
        right, wrong = (total(model, tokenizer, item.prompt + tail) for tail in (item.answer, item.foil))
        assert nats == pytest.approx(right - wrong, abs=1e-4)
        if item.prompt:
            right, wrong = (total(model, tokenizer, tail) for tail in (item.answer, item.foil))
            assert blind == pytest.approx(right - wrong, abs=1e-4)
        else:
            assert blind != blind  # NaN: there is no prompt to take away
    assert sum(done) == n_forwards(ITEMS) and not found.truncated.any()


def test_routed_models_and_their_order_of_items(model, tokenizer):
    routed = route(model, RoutingConfig(n_pathways=4, k=2, every_n_layers=1), calibration=torch.arange(64)[None]).eval()
    forwards = margins(routed, tokenizer, ITEMS).nats
    assert torch.allclose(forwards, margins(routed, tokenizer, ITEMS[::-1]).nats.flip(0), atol=1e-5)
    assert not torch.allclose(forwards, margins(model, tokenizer, ITEMS).nats, atol=1e-3)


def test_a_short_context_drops_the_beginning_of_the_prompt(model, tokenizer):
    model.config.max_position_embeddings, whole = 8, model.config.max_position_embeddings
    try:
        long = Item("word " * 20 + "The dog near the houses", " is", " are")
        hopeless = Item("x", " the dog" * 12 + " is", " on the dog" * 12)
        found = margins(model, tokenizer, [long, hopeless, ITEMS[1]])
        ids = tokenizer(long.prompt).input_ids[-8:]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        is_, are = (tokenizer(tail).input_ids[0] for tail in (" is", " are"))
        assert found.nats[0].item() == pytest.approx(float(log_p[is_] - log_p[are]), abs=1e-4)
        assert found.truncated.tolist() == [True, False, False] and found.nats[1].isnan()
    finally:
        model.config.max_position_embeddings = whole


def test_without_a_separator_the_first_token_cannot_be_scored(model, tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    found = margins(model, bare, [ITEMS[2], Item("", "Dogs run.", "A dog run.")])
    assert found.nats.isnan().tolist() == [False, True]


def test_rows_of_a_task_by_hand():
    nan = torch.nan
    nats, blind = torch.tensor([2.0, -1.0, 0.0, nan]), torch.tensor([nan, nan, nan, nan])
    rows = probe_rows(Task("t", "", "", ()), Margins(nats, blind, torch.tensor([True, False, False, False])))
    assert {(row.place, row.family) for row in rows} == {("model", "t")}
    accuracy, unprompted, margin, truncated, left_out = rows
    wilson = proportion(torch.tensor([1.0, 0.0, 0.5]))
    assert (accuracy.value, accuracy.low, accuracy.high, accuracy.n) == wilson and accuracy.null_mean == 0.5
    assert (unprompted.value, unprompted.n) == (None, 0)
    assert margin.value == pytest.approx(1 / 3) and margin.null_mean is None
    assert (truncated.value, left_out.value) == (1, 1)
