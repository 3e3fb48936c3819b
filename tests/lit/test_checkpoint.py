import pytest
import torch

from slms.lit.checkpoint import damage, find_checkpoint


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("step=1", "last"):
        torch.save({"state_dict": {"w": torch.arange(1000.0)}, "step": 1}, tmp_path / "checkpoints" / f"{name}.ckpt")
    return tmp_path


def test_a_run_directory_means_its_last_checkpoint(run):
    assert find_checkpoint(run) == run / "checkpoints" / "last.ckpt"


def test_a_truncated_checkpoint_is_refused_and_an_intact_one_named(run):
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"truncated or damaged checkpoint; .*step=1.ckpt is intact"):
        find_checkpoint(run)


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
