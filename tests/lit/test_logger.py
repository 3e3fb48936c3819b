import pytest

from slms.lit.logger import TensorBoard


def test_numbers_reach_the_event_file_until_the_writer_fails(tmp_path, caplog):
    logger = TensorBoard(tmp_path, "name", "version", default_hp_metric=False)
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
        TensorBoard(tmp_path, "name", "version").experiment.add_nothing()
