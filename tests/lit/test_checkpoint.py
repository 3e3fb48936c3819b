import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from slms.lit.checkpoint import WholeCheckpointIO, damage, find_checkpoint, step_of


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("step=1", "last"):
        torch.save(
            {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 1}, tmp_path / "checkpoints" / f"{name}.ckpt"
        )
    return tmp_path


def test_a_run_directory_means_its_last_checkpoint(run):
    assert find_checkpoint(run) == run / "checkpoints" / "last.ckpt"


def test_a_damaged_newest_is_named_and_left_aside(run, caplog):
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:2000])
    assert find_checkpoint(run) == run / "checkpoints" / "step=1.ckpt"
    (line,) = caplog.messages
    assert f"{last}: truncated or damaged checkpoint; left aside for " in line
    with pytest.raises(ValueError, match=r"truncated or damaged checkpoint; .*step=1.ckpt is intact"):
        find_checkpoint(last)


def test_of_several_the_one_of_the_most_steps_is_the_last_whatever_its_name(run):
    """A run directory that moved could keep a stale `last.ckpt`; a metric in a name makes a directory of it."""
    place = run / "checkpoints" / "epoch=0-val"
    place.mkdir()
    for step, path in ((7, place / "loss=0.895.ckpt"), (9, run / "checkpoints" / ".part-x.ckpt")):
        torch.save({"global_step": step}, path)
    assert find_checkpoint(run) == place / "loss=0.895.ckpt"
    torch.save({"global_step": 8}, run / "checkpoints" / "last-v1.ckpt")
    os.utime(run / "checkpoints" / "last-v1.ckpt", (0, 0))
    assert find_checkpoint(run) == run / "checkpoints" / "last-v1.ckpt"


def test_a_file_of_torch_that_is_no_checkpoint(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="not the checkpoint of a training run"):
        find_checkpoint(tmp_path / "weights.ckpt")


def test_a_flipped_bit_is_noticed(run):
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 100] ^= 1
    last.write_bytes(content)
    assert "fails its checksum" in damage(last)


def test_pickled_code_is_refused_and_not_run(run):
    class Boom:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"x": Boom()}, run / "checkpoints" / "last.ckpt")
    assert "pickled code" in damage(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("name", ["nowhere.ckpt", "."])
def test_a_missing_checkpoint_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="--ckpt_path"):
        find_checkpoint(tmp_path / name)


def test_a_kill_before_the_first_last_leaves_the_checkpoint_of_its_step(run):
    (run / "checkpoints" / "last.ckpt").unlink()
    assert find_checkpoint(run) == run / "checkpoints" / "step=1.ckpt"


def test_a_checkpoint_that_does_not_fit_leaves_the_previous_one(run, monkeypatch):
    last = run / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    class Full:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        WholeCheckpointIO().save_checkpoint({"w": torch.zeros(10**6), "x": Full()}, last)
    assert last.read_bytes() == before
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "step=1.ckpt"]


@pytest.fixture
def shards(tmp_path):
    """A checkpoint as the strategy `fsdp2_sharded` writes it, here by one process."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = {"state_dict": {"w": torch.arange(1000.0)}, "optimizer_0": {"lr": 0.1, "step": torch.tensor(3)}}
    dcp.save(state, checkpoint_id=path, no_dist=True)
    torch.save({"global_step": 7}, path / "meta.pt")
    return path


def test_shards_are_a_checkpoint(shards):
    assert find_checkpoint(shards) == find_checkpoint(shards.parents[1]) == shards
    assert damage(shards) is None and step_of(shards) == 7


def test_a_flipped_bit_in_a_shard_is_noticed(shards):
    shard = shards / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 100] ^= 1
    shard.write_bytes(content)
    assert "fails its checksum" in damage(shards)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "meta.pt"])
def test_a_truncated_shard_is_refused(shards, name):
    (shards / name).write_bytes((shards / name).read_bytes()[:100])
    assert damage(shards) == "truncated or damaged checkpoint"


@pytest.mark.parametrize("call", [print, torch.load, eval])
def test_pickled_code_in_metadata_or_in_a_shard_is_refused_and_not_run(shards, call, tmp_path):
    class Boom:
        def __reduce__(self):
            return (call, ("executed",))

    good = (shards / ".metadata").read_bytes()
    (shards / ".metadata").write_bytes(pickle.dumps(Boom()))
    assert "pickled code" in damage(shards)
    (shards / ".metadata").write_bytes(good)
    dcp.save({"optimizer_0": {"lr": Boom()}}, checkpoint_id=shards, no_dist=True)
    assert "pickled code" in damage(shards)
