"""The logged numbers are those of the final model; probes, sanity check and TensorBoard behave as promised."""

import pytest

from slms.callbacks import Specialization
from slms.measure.pathways import measure_pathways
from slms.measure.rows import log_keys
from slms.report.metrics_csv import METRICS_FILE, read_rows


def test_logged_numbers_are_those_that_a_pass_of_its_own_measures(fit):
    """The last validation saw the final weights, so feeding batch by batch in training must give what eval.py gives."""
    measured = measure_pathways(fit.model.net, fit.model.tokenizer, fit.data.val_blocks, fit.data.batch_size)
    wanted = log_keys(measured.rows, "val")
    rows = read_rows(fit.directory / METRICS_FILE)
    logged = {f"{r.stage}/{r.metric}" + f"/{r.place}" * bool(r.place): r.value for r in rows if r.step == 7}
    assert len(wanted) > 30
    for key, value in wanted.items():
        assert logged[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


def test_probes_come_when_asked_on_their_own_batches(fit):
    rows = read_rows(fit.directory / METRICS_FILE)
    assert sorted({row.step for row in rows if row.stage == "probe"}) == [2, 5]
    assert {row.metric for row in rows if row.stage == "probe"} >= {"purity", "entropy", "utilization", "si_pos"}


def test_sanity_check_is_not_counted(fit):
    """It would appear as a validation at step 0 and one batch more in the tables."""
    assert fit.trainer.num_sanity_val_steps == 1
    steps = {
        row.step for row in read_rows(fit.directory / METRICS_FILE) if (row.stage, row.metric) == ("val", "purity")
    }
    assert steps == {3, 7}


def test_probing_leaves_training_as_it_was(make, tmp_path):
    """Same weights with and without probes: no random number is drawn, no mode is left changed."""
    make_module, make_data, make_trainer = make
    weights = []
    for every in (None, 1):
        model = make_module()
        options = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 0}
        trainer = make_trainer(tmp_path / "a" / str(every), [Specialization(every_n_steps=every)], **options)
        trainer.fit(model, make_data(model))
        assert model.net.training
        weights.append(model.state_dict())
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_tensorboard_shows_bars_heatmaps_and_tokens(fit, events):
    tags = events.Tags()
    assert {"val/load_by_pathway", "val/pathways_by_pos", "val/pathways_by_semantic"} <= set(tags["images"])
    assert not set(tags["images"]) & set(tags["scalars"])  # TensorBoard would show but one of the two
    assert [image.step for image in events.Images("val/load_by_pathway")] == [3, 7]
    text = events.Tensors("val/top_tokens/L1.mlp/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.startswith("| pathway | load | purity |") and text.count("\n| ") == 1 + 4


def test_dense_runs_log_nothing(make, tmp_path):
    make_module, make_data, make_trainer = make
    model = make_module(routing=None)
    trainer = make_trainer(tmp_path / "a" / "b", [Specialization(every_n_steps=1)], max_steps=1, max_epochs=1)
    trainer.fit(model, make_data(model))
    assert not any("purity" in key for key in trainer.logged_metrics)


@pytest.mark.parametrize("name, value", [("every_n_steps", 0), ("probe_batches", 0)])
def test_impossible_options(name, value):
    with pytest.raises(ValueError, match=f"specialization.{name} is {value}; it must be at least 1"):
        Specialization(**{name: value})
