"""The model of a checkpoint is the run's model at that step; what is none is refused in one line."""

import pytest
import torch

from slms.lit.trained import model_at
from slms.models.io import load_model
from tests.processes import Run, directory, flags


@pytest.fixture(scope="module")
def dense_run(folder):
    more = "--model.routing=null", "--model.distill.logits=0", "--checkpoint.save_top_k=-1"
    run = Run(folder / "dense.log", flags(folder, "dense", *more))
    assert run.join() == [0], run.said()
    return directory(folder, "dense")


def test_the_last_checkpoint_is_the_finished_model(dense_run):
    last = model_at(dense_run / "checkpoints" / "last.ckpt")
    finished, tokenizer = load_model(dense_run / "model")
    assert len(last.base.tokenizer) == len(tokenizer) and last.tokens == 6 * 8 * 32
    for (name, mine), theirs in zip(last.base.model.state_dict().items(), finished.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_an_earlier_one_is_another(dense_run):
    (early,) = (dense_run / "checkpoints").glob("*step=2.ckpt")
    trained = model_at(early)
    assert trained.tokens == 2 * 8 * 32 and trained.config["name"] == "dense"
    later = model_at(dense_run / "checkpoints" / "last.ckpt").base.model
    assert not torch.equal(trained.base.model.lm_head.weight, later.lm_head.weight)


def test_what_cannot_be_opened_is_one_line(one_run, dense_run, tmp_path):
    (tmp_path / "cut.ckpt").write_bytes((dense_run / "checkpoints" / "last.ckpt").read_bytes()[:-100])
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    for path, told in (
        (one_run / "checkpoints" / "last.ckpt", "dense runs"),
        (tmp_path / "none.ckpt", "no such checkpoint"),
        (tmp_path / "cut.ckpt", "damaged"),
        (tmp_path / "bare.ckpt", "configuration"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            model_at(path)
        assert "\n" not in str(error.value)
