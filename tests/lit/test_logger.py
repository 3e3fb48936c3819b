import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slms.lit.logger import TensorBoard


def test_numbers_reach_the_event_file_until_the_writer_fails(tmp_path, caplog):
    logger = TensorBoard(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.experiment.flush()
    written = list(tmp_path.rglob("events.*"))
    assert len(written) == 1 and b"loss" in written[0].read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    logger._experiment.add_scalar = full
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
    logger.experiment.add_figure("anything", None)
    logger.finalize("success")
    assert [record.message.count("No space left") for record in caplog.records] == [1]


def test_a_programming_error_is_not_hidden(tmp_path):
    with pytest.raises(AttributeError):
        TensorBoard(tmp_path).experiment.add_nothing()


def test_a_long_run_leaves_few_entries_of_a_tag(tmp_path):
    logger = TensorBoard(tmp_path)
    for step in range(3 * 4096):
        logger.log_metrics({"loss": float(step), "rare": 1.0} if step < 10 else {"loss": float(step)}, step)
    for step in range(3 * 32):
        logger.experiment.add_figure("figure", Figure(figsize=(0.1, 0.1)), step)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, {"scalars": 0, "images": 0}).Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == [*range(4096), *range(4096, 8192, 2), *range(8192, 12288, 4)]
    assert len(events.Scalars("rare")) == 10
    assert [event.step for event in events.Images("figure")] == [*range(32), *range(32, 64, 2), *range(64, 96, 4)]
