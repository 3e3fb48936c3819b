"""Router saturation has the right numbers, bounded memory, and a state that survives a checkpoint."""

import copy
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from slms.callbacks import Evolution, MetricsCsv, Specialization
from slms.callbacks.evolution import CONVERSION
from slms.models.routed import record_routes
from slms.report.evolution import evolution_figure
from slms.report.metrics_csv import METRICS_FILE, read_rows
from slms.routing import RoutingConfig


class Recorder:
    """Stands in for a module with one routed layer, and for the trainer's logger."""

    def __init__(self):
        self.last_routes = {}
        self.logged = []

    def log_metrics(self, values, step):
        self.logged.append((step, values))


def _validate(callback, module, trainer, chosen, step):
    """One validation of two batches at `step`, in which layer 3 chooses `chosen` [2, n, p]."""
    trainer.global_step = step + 1
    callback.on_validation_epoch_start(trainer, module)
    for batch in chosen:
        module.last_routes = {"L3.mlp": SimpleNamespace(chosen=batch)}
        callback.on_validation_batch_end(trainer, module, None, None, 0)
    callback.on_validation_epoch_end(trainer, module)


@pytest.fixture
def parts(tmp_path):
    module = Recorder()
    trainer = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        current_epoch=0,
        global_step=0,
        fast_dev_run=False,
        loggers=[module],
        default_root_dir=str(tmp_path),
        strategy=SimpleNamespace(broadcast=lambda place: place),
    )
    return module, trainer


def _random(seed, k=2, p=11, n=40):
    scores = torch.rand(2, n, p, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(2, n, p, dtype=torch.bool).scatter_(-1, scores.topk(k).indices, True)


def test_saturation_and_stability_from_the_definition(parts):
    module, trainer = parts
    callback = Evolution(probe_tokens=50)
    rounds = [_random(seed) for seed in range(3)]
    for step, chosen in enumerate(rounds):
        _validate(callback, module, trainer, chosen, step)
    kept = [chosen.flatten(0, 1)[:50] for chosen in rounds]  # 40 tokens of the first batch, 10 of the second

    def share(now, then):
        return float(((now & then).sum(-1) / 2).mean())

    assert [(step, row["val/stability/L3.mlp"]) for step, row in module.logged] == [
        (1, pytest.approx(share(kept[0], kept[1]))),
        (2, pytest.approx(share(kept[1], kept[2]))),
    ]
    module.logged.clear()
    callback.on_train_end(trainer, module)
    assert [(step, row["val/saturation/L3.mlp"]) for step, row in module.logged] == [
        (step, pytest.approx(share(kept[step], kept[2]))) for step in range(3)
    ]
    assert module.logged[-1][1]["val/saturation/L3.mlp"] == 1.0


def test_the_first_snapshot_is_of_the_model_as_converted(make, tmp_path):
    """What the untrained model chooses for the first tokens; neither its mode nor random numbers change."""
    make_module, make_data, make_trainer = make
    model, callback = make_module(), Evolution(probe_tokens=100)
    data = make_data(model)
    seen = {}

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            seen["net"], seen["training"] = copy.deepcopy(pl_module.net).eval(), pl_module.net.training
            seen["random"] = torch.get_rng_state()

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.setdefault("after", pl_module.net.training)

    make_trainer(tmp_path, [Look(), callback], max_steps=1, limit_val_batches=0).fit(model, data)
    ids = torch.from_numpy(data.val_blocks.input_ids[:4].astype("int64"))
    with torch.no_grad(), record_routes(seen["net"]) as routes:
        seen["net"](ids)
    (first,) = callback.snapshots
    kept = callback._choices(first)
    assert first["step"] == CONVERSION and seen["training"] and seen["after"]
    assert list(kept) == list(routes)
    assert all(kept[place].equal(found.chosen[:100]) for place, found in routes.items())


def test_memory_is_bounded_and_first_and_last_stay(parts):
    module, trainer = parts
    callback = Evolution(probe_tokens=10, max_snapshots=5)
    for step in range(40):
        _validate(callback, module, trainer, _random(step), step)
        assert len(callback.snapshots) <= 5
        assert [callback.snapshots[0]["step"], callback.snapshots[-1]["step"]] == [0, step]
    assert callback.snapshots[0]["choices"]["L3.mlp"].shape == (10, 2)  # 11 pathways in two bytes a token


def test_state_survives_a_weights_only_checkpoint(parts, tmp_path):
    module, trainer = parts
    callback, again = Evolution(), Evolution()
    for step in range(2):
        _validate(callback, module, trainer, _random(step), step)
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    _validate(again, module, trainer, _random(7), 1)  # a resumed run repeats the validation at its step
    assert [snapshot["step"] for snapshot in again.snapshots] == [0, 1]
    module.logged.clear()
    again.on_train_end(trainer, module)
    assert module.logged[1][1]["val/saturation/L3.mlp"] == 1.0


def test_state_from_before_places_had_names_is_understood():
    again = Evolution()
    choices = torch.zeros(1, 1, dtype=torch.uint8)
    again.load_state_dict({"n_pathways": {3: 5}, "snapshots": [{"step": 0, "epoch": 0, "choices": {3: choices}}]})
    assert again.n_pathways == {"L3.mlp": 5} and list(again.snapshots[0]["choices"]) == ["L3.mlp"]


def test_sanity_check_and_other_ranks_keep_nothing(parts):
    module, trainer = parts
    callback = Evolution()
    trainer.sanity_checking = True
    _validate(callback, module, trainer, _random(0), 0)
    trainer.sanity_checking, trainer.is_global_zero = False, False
    _validate(callback, module, trainer, _random(0), 0)
    assert callback.snapshots == [] and module.logged == []


def test_a_real_run_writes_rows_and_the_figure(fit):
    rows = read_rows(fit.directory / METRICS_FILE)
    final = {(row.step, row.place): row.value for row in rows if row.metric == "saturation"}
    assert set(final) == {(step, place) for step in (0, 3, 7) for place in ("L0.mlp", "L1.mlp")}
    assert final[7, "L0.mlp"] == final[7, "L1.mlp"] == 1.0 and 0 < final[3, "L0.mlp"] <= 1
    assert {row.step for row in rows if row.metric == "stability"} == {3, 7}
    assert fit.callbacks["evolution"].snapshots[0]["step"] == CONVERSION
    assert 0 < final[0, "L0.mlp"] <= 1 and final[0, "L1.mlp"] <= final[3, "L1.mlp"]
    assert (fit.directory / "evolution.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("fields", [{"rule": "controlled"}, {"pool": 3, "pool_block": 8}], ids=["controlled", "pool"])
def test_heads_and_mlps_of_every_kind_have_rows_and_panels(make, tmp_path, fields):
    make_module, make_data, make_trainer = make
    fields = fields | {"target": "both", "k_heads": 1, "router": "linear", "gate": "unit"}
    routing = RoutingConfig(n_pathways=4, k=2, every_n_layers=1, **fields)
    model = make_module(routing)
    callbacks = [MetricsCsv(), Specialization(heatmaps=()), Evolution(probe_tokens=100)]
    short = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0, "logger": False}
    make_trainer(tmp_path, callbacks, **short).fit(model, make_data(model))
    rows = read_rows(tmp_path / METRICS_FILE)
    places = {f"L{layer}.{kind}" for layer in range(2) for kind in ("attn", "mlp")}
    drawn = {axes.get_title(loc="left"): axes.get_lines() for axes in evolution_figure(rows).axes}
    panels = {
        "purity": "Purity",
        "utilization": "Utilization",
        "max_load": "Largest load",
        "stability": "Choices kept since the previous validation",
        "saturation": "Choices that are already the final ones",
    }
    if "rule" in fields:  # a budget that is learned, whose density may move
        panels["density"] = "Density"
    assert drawn.keys() >= set(panels.values()) and ("Density" in drawn) == ("rule" in fields)
    for metric, title in panels.items():
        assert {row.place for row in rows if row.metric == metric and row.place} == places
        assert len(drawn[title]) == len(places)
    assert (tmp_path / "evolution.png").is_file()


@pytest.mark.parametrize("name, value", [("probe_tokens", 0), ("max_snapshots", 1)])
def test_impossible_options(name, value):
    with pytest.raises(ValueError, match=f"evolution.{name} is {value}; it must be at least"):
        Evolution(**{name: value})
