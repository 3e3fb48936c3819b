"""metrics.csv holds what was logged, once, and a resumed run continues it."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from slms.callbacks import Evolution, MetricsCsv, Specialization
from slms.callbacks.metrics_csv import TidyCsvLogger
from slms.report.metrics_csv import METRICS_FILE, Logged, read_rows


def test_every_logged_number_is_there(fit, events):
    rows = read_rows(fit.directory / METRICS_FILE)
    by_key = {(row.stage, row.metric, row.place): row for row in rows}
    scalars = {tag: events.Scalars(tag)[-1] for tag in events.Tags()["scalars"]}
    final = {"epoch"}  # Lightning's own
    for tag in scalars.keys() - final:
        stage, metric, place = (*tag.split("/", 2), "")[:3]
        row = by_key[stage, metric, place]
        assert (row.step, row.value) == (scalars[tag].step, pytest.approx(scalars[tag].value, rel=1e-6, nan_ok=True))
    assert len(by_key) == len(scalars.keys() - final)


def test_epochs_are_counted_and_steps_sorted(fit):
    rows = read_rows(fit.directory / METRICS_FILE)
    losses = [row for row in rows if (row.stage, row.metric, row.place) == ("val", "loss", "")]
    assert [(row.step, row.epoch) for row in losses] == [(3, 0), (7, 1)]
    assert [row.step for row in rows] == sorted(row.step for row in rows)


def test_epoch_is_a_column_and_not_a_metric(tmp_path):
    logger = TidyCsvLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"train/loss/lm": 2.0, "epoch": 3.0}, step=7)
    logger.log_metrics({"val/purity/L2.mlp": 0.5}, step=8)
    assert read_rows(logger.path) == [
        Logged(7, 3, "train", "loss", "lm", 2.0),
        Logged(8, 3, "val", "purity", "L2.mlp", 0.5),
    ]


def test_resuming_forgets_what_comes_again(tmp_path):
    logger = TidyCsvLogger(tmp_path / "metrics.csv")
    for step in range(5):
        logger.log_metrics({"train/loss": float(step)}, step)
    with logger.path.open("a") as file:
        file.write("5,0,train,lo")  # killed while writing
    again = TidyCsvLogger(tmp_path / "metrics.csv")
    again.resume_at(3)
    again.log_metrics({"train/loss": 30.0}, 3)
    assert [row.value for row in read_rows(again.path)] == [0.0, 1.0, 2.0, 30.0]


def test_a_new_run_in_the_same_place_starts_over(tmp_path):
    logger = TidyCsvLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"a/b": 1.0}, 0)
    logger.resume_at(0)
    assert read_rows(logger.path) == []


def test_finalize_sorts_and_keeps_the_last_of_two(tmp_path):
    logger = TidyCsvLogger(tmp_path / "metrics.csv")
    for step, value in ((4, 1.0), (2, 2.0), (4, 3.0)):
        logger.log_metrics({"val/loss": value}, step)
    logger.finalize("failed")
    assert len(read_rows(logger.path)) == 3
    logger.finalize("success")
    assert [(row.step, row.value) for row in read_rows(logger.path)] == [(2, 2.0), (4, 3.0)]


class PullThePlug(L.Callback):
    """Fails at the sixth step, before its checkpoint is written."""

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == 6:
            raise RuntimeError("no power")


def test_a_resumed_run_ends_with_the_rows_of_one_that_never_stopped(fit, make, tmp_path):
    make_module, make_data, make_trainer = make
    directory = tmp_path / "a" / "b"

    def run(*more, **options):
        checkpoint = ModelCheckpoint(directory / "checkpoints", every_n_train_steps=1, save_last=True)
        callbacks = [MetricsCsv(), Specialization(every_n_steps=3, probe_batches=2), Evolution(probe_tokens=100)]
        trainer = make_trainer(directory, [*callbacks, *more, checkpoint], enable_checkpointing=True)
        model = make_module()
        trainer.fit(model, make_data(model), **options)

    with pytest.raises(RuntimeError, match="no power"):
        run(PullThePlug())
    assert max(row.step for row in read_rows(directory / METRICS_FILE)) == 5
    run(ckpt_path=directory / "checkpoints" / "last.ckpt", weights_only=True)
    wanted = {row[:5]: row.value for row in read_rows(fit.directory / METRICS_FILE) if row.metric != "epoch"}
    found = {row[:5]: row.value for row in read_rows(directory / METRICS_FILE)}
    assert found == pytest.approx(wanted, nan_ok=True)


def test_a_step_s_rows_are_written_once_and_before_its_checkpoint(make, tmp_path):
    """A run killed right after a checkpoint is resumed behind that step: its rows must be there already."""
    make_module, make_data, make_trainer = make
    found = []

    class Saves(ModelCheckpoint):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rows = [row for row in read_rows(tmp_path / METRICS_FILE) if row.metric == "loss"]
            found.append((trainer.global_step, [row.step for row in rows if row.place == "lm"]))

    model = make_module()
    callbacks = [MetricsCsv(), Saves(dirpath=tmp_path)]
    options = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0, "enable_checkpointing": True}
    make_trainer(tmp_path, callbacks, **options).fit(model, make_data(model))
    assert found == [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])]
    assert [row.step for row in read_rows(tmp_path / METRICS_FILE) if row.place == "lm"] == [0, 1, 2, 3]
