"""The results of a finished run are complete and true; an unfinished run leaves none."""

import math

import pytest
import torch

import slms
from slms.callbacks import ResultsWriter
from slms.measure.controls import CONTROLS
from slms.measure.evidence import Choices, Evidence
from slms.measure.metrics import METRICS
from slms.measure.passes import document_loss
from slms.measure.rows import MODEL, places_of
from slms.models.flops import flops_per_token
from slms.report.closing_table import closing_table
from slms.report.results import FIGURE_FILE, RESULTS_FILE, read_results


def test_results_are_those_of_the_final_model(fit):
    results = read_results(fit.directory)
    assert results == fit.callbacks["results"].results
    loss = document_loss(fit.model.net, fit.data.val_blocks, 4).compute()
    assert results.losses.model.nats == pytest.approx(loss.value, rel=1e-6)
    assert results.losses.model.low == pytest.approx(loss.low, rel=1e-6)  # of two passes one records routes
    assert results.losses.model.perplexity == pytest.approx(math.exp(loss.value), rel=1e-6)
    base = fit.model.base_loss.compute()
    assert results.losses.dense.nats == base.value
    assert results.losses.difference.nats == pytest.approx(loss.value - base.value, abs=1e-7)
    assert results.losses.kl.nats == pytest.approx(float(fit.trainer.callback_metrics["val/kl"]), rel=1e-4)
    assert "KL to the base" in closing_table(results)
    assert sum(results.losses.by_document.nats) / sum(results.losses.by_document.tokens) == pytest.approx(loss.value)


def test_what_the_run_was(fit):
    results = read_results(fit.directory)
    assert (results.run.name, results.run.role) == ("tiny", "routed")
    assert (results.run.steps, results.run.tokens_trained) == (8, 8 * 4 * 32)
    assert (results.base.name, results.base.source, results.data.source) == ("stories-1m", "embedded", "embedded")
    assert results.data.validation_tokens == 1536 and results.run.seconds > 0
    assert results.routing == fit.model.routing.to_dict()
    densities = {row.place: row.value for row in results.rows if row.metric == "density"}
    flops = flops_per_token(fit.model.net, 32, densities)
    assert results.compute.mlp_saved == flops.mlp_saving and results.compute.active_fraction == flops.active_fraction


def test_places_have_every_number_with_its_nulls_and_control(fit):
    results = read_results(fit.directory)
    assert results.places == ["L0.mlp", "L1.mlp"] and places_of(results.rows) == [*results.places, MODEL]
    for place in results.places:
        found = {row.key[1:]: row for row in results.rows if row.place == place}
        assert found["chosen_per_token", ""].value == 2 and found["density", ""].value == pytest.approx(0.5)
        assert sum(pathway.load for pathway in results.pathways[place]) == pytest.approx(1)
        for row in (found["purity", ""], found["si", "pos"]):
            assert None not in (row.value, row.low, row.high, row.null_sd)
        measured = {name for name, metric in METRICS.items() if metric.of in (Choices, Evidence)}
        measured -= {"si_given_token", "whole"}  # the latter has a router `gate` alone
        assert {metric for metric, _ in found} == measured
        for row in found.values():
            assert row.n > 0 and row.seed == results.run.seed
            assert (row.control is not None) == METRICS[row.metric].compared
    assert list(results.controls) == [*CONTROLS, "random_weights"]
    known = {(row.place, row.metric) for row in results.controls["random_weights"].rows}
    assert {("L0.mlp", "purity"), ("L1.mlp", "entropy")} <= known
    assert set(results.legacy) == {"layer_0", "layer_1"}


def test_table_is_printed_last(fit):
    results = read_results(fit.directory)
    assert fit.printed.endswith(f"\n{closing_table(results, brief=True)}\n\nwritten to {fit.directory}\n")


def test_saved_model_gives_the_same_logits(fit):
    model, tokenizer = slms.load_model(fit.directory / "model")
    ids = torch.from_numpy(fit.data.val_blocks.input_ids[:2].astype("int64"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, fit.model.net.eval()(ids).logits)
    assert tokenizer.decode(ids[0]) == fit.model.tokenizer.decode(ids[0])


def test_hyperparameter_row(fit, events):
    assert (fit.directory / FIGURE_FILE).is_file()
    results = read_results(fit.directory)
    assert events.Scalars("val/loss")[-1].value == pytest.approx(results.losses.model.nats)
    (row,) = [data for tag, data in events.PluginTagToContent("hparams").items() if tag.endswith("session_start_info")]
    assert b"flops_saved" in row and not [tag for tag in events.Tags()["scalars"] if tag.startswith("final/")]
    assert "custom_scalars__config__" in events.PluginTagToContent("custom_scalars")
    hparams = [tag for tag in events.summary_metadata if tag.startswith("_hparams_/")]
    assert "_hparams_/session_start_info" in hparams


def test_dense_run_has_results_and_no_figure(make, tmp_path, capsys):
    make_module, make_data, make_trainer = make
    model = make_module(routing=None)
    directory = tmp_path / "dense" / "a"
    trainer = make_trainer(directory, [ResultsWriter(save_model=False)], max_epochs=1, limit_train_batches=1)
    trainer.fit(model, make_data(model))
    results = read_results(directory)
    assert (results.run.role, results.rows, results.pathways, results.routing) == ("dense", [], {}, None)
    assert results.compute.active_fraction == 1 and results.compute.mlp_saved == 0
    assert not (directory / FIGURE_FILE).exists() and not (directory / "model").exists()
    assert "dense, trained" in capsys.readouterr().out


def test_interrupted_run_writes_nothing(make, tmp_path):
    make_module, make_data, make_trainer = make
    model = make_module(routing=None)

    def fail(*arguments):
        raise RuntimeError("pulled the plug")

    model.on_validation_epoch_end = fail
    trainer = make_trainer(tmp_path / "a" / "b", [ResultsWriter()], max_epochs=1, limit_train_batches=1)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        trainer.fit(model, make_data(model))
    assert not (tmp_path / "a" / "b" / RESULTS_FILE).exists()


def test_a_resumed_run_counts_what_came_before(fit):
    state = fit.callbacks["results"].state_dict()
    again = ResultsWriter()
    again.load_state_dict(state)
    assert again.state_dict() == state | {"seconds": pytest.approx(state["seconds"], abs=60)}
    assert state["tokens"] == 8 * 4 * 32
