"""A part is made once for all that it depends on, and a killed pass continues with its sums."""

import logging
import pickle

import pytest
import torch

from slms.measure.journal import Journal, identity
from slms.metrics.functional import Interval
from slms.metrics.loss import DocumentLoss
from slms.models.base import BaseConfig, init_base


def counted(value):
    calls = []

    def make():
        calls.append(1)
        return value

    return make, calls


def test_a_part_is_made_once(tmp_path, caplog):
    value = {"loss": Interval(1.5, 1.0, 2.0, 7), "table": [torch.arange(3), None, "é"], 3: (True, 0.5)}
    make, calls = counted(value)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = Journal(tmp_path, {"model": "a"}).part("L3.mlp", make, rule="cats")
            assert found["loss"] == value["loss"] and isinstance(found["loss"], Interval)
            assert torch.equal(found["table"][0], value["table"][0]) and found[3] == (True, 0.5)
    assert len(calls) == 1 and "parts measured before are taken from" in caplog.text


def test_another_model_setting_or_name_is_another_part(tmp_path):
    make, calls = counted(1)
    others = (({"m": 1}, "a", {}), ({"m": 2}, "a", {}), ({"m": 1}, "b", {}), ({"m": 1}, "a", {"x": 1}))
    for made_from, name, settings in others:
        for _ in range(2):
            Journal(tmp_path, made_from).part(name, make, **settings)
    assert len(calls) == 4


def test_without_a_directory_nothing_is_kept():
    make, calls = counted(1)
    journal = Journal()
    journal.part("a", make)
    journal.part("a", make)
    assert len(calls) == 2


def test_damaged_and_foreign_files_are_measured_anew(tmp_path):
    make, calls = counted(5)
    Journal(tmp_path).part("a", make)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK", pickle.dumps(print)):
        path.write_bytes(content)
        assert Journal(tmp_path).part("a", make) == 5
    assert len(calls) == 5


@pytest.mark.parametrize("killed_at", [0, 3, 9])
def test_a_killed_pass_goes_on_with_its_sums(tmp_path, killed_at, monkeypatch):
    monkeypatch.setattr("slms.measure.journal.SHARE", 1e9)  # keeps after every item
    seen = []

    def whole(stop=None):
        loss = DocumentLoss(n_slots=4)
        for item in Journal(tmp_path).through("a", list(range(10)), [loss], "reading"):
            if item == stop:
                raise KeyboardInterrupt
            seen.append(item)
            loss.update(torch.tensor([float(item)]), torch.tensor([item]))
        return loss

    with pytest.raises(KeyboardInterrupt):
        whole(killed_at)
    loss = whole()
    assert seen == list(range(10)), "each item once"
    assert loss.nll.sum() == 45 and loss.tokens.sum() == 10
    assert whole().nll.sum() == 45 and seen == list(range(10)), "a finished pass is not repeated"


def test_a_model_is_known_by_its_weights_and_shape():
    base = BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2)
    a, b = init_base(base, 0), init_base(base, 0)
    assert identity(a) == identity(b) != identity(init_base(base, 1))
    b.config.layer_norm_epsilon = 0.1
    assert identity(a) != identity(b)
