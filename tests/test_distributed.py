"""One process, two and four with the same global batch are the same run, also resumed on another number of them."""

import signal

import pytest

from slms.lit.checkpoint import damage
from slms.report.metrics_csv import read_rows
from slms.report.results import read_results
from tests.processes import Run, directory, flags, slurm, torchrun


def several(world, strategy="ddp"):
    return [f"--trainer.devices={world}", f"--trainer.strategy={strategy}", f"--data.batch_size={8 // world}"]


def numbers(folder, name):
    """(stage, metric, place, step) → value; not which tokens the first process keeps to compare routers by."""
    rows = read_rows(directory(folder, name) / "metrics.csv")
    return {row[:1] + row[2:5]: row.value for row in rows if row.metric not in ("stability", "saturation")}


def assert_same_run(folder, name):
    """Losses to 1e-5; what is counted (utilization, pathway × token tables and all that follows) exactly."""
    one, other = numbers(folder, "one"), numbers(folder, name)
    assert one.keys() == other.keys()
    for key, value in one.items():
        is_loss = key[2] == "loss" or key[2] in ("loss", "perplexity") or key[1:3] == ("train", "loss")
        assert abs(other[key] - value) <= (1e-5 * max(1, abs(value)) if is_loss else 0), (key, value, other[key])
    first, second = (read_results(directory(folder, which)) for which in ("one", name))
    assert first.layers == second.layers and first.run.tokens_trained == second.run.tokens_trained
    assert abs(first.losses.model.nats - second.losses.model.nats) < 1e-5


@pytest.mark.slow
def test_two_processes_under_torchrun_and_four_under_slurm_are_one_process(folder, one_run):
    two = Run(folder / "two.log", flags(folder, "two", *several(2)), torchrun(2))
    assert two.join() == [0, 0], two.said()
    four = Run(folder / "four.log", flags(folder, "four", *several(4)), slurm(4))
    assert four.join() == [0, 0, 0, 0], four.said()
    assert_same_run(folder, "two")
    assert_same_run(folder, "four")
    assert "Traceback" not in two.said() + four.said()


@pytest.mark.slow
def test_a_lost_process_stops_the_others_with_the_reason_and_one_process_goes_on(folder, one_run):
    lost = Run(folder / "lost.log", flags(folder, "lost", *several(2)), torchrun(2), kill={1: "4:0.02"})
    assert lost.join() == [2, -signal.SIGKILL], lost.said()
    (line,) = [line for line in lost.said().splitlines() if "error:" in line]
    assert "rank 0: another process of this run stopped" in line and "resume with --ckpt_path=" in line
    again = Run(folder / "lost.log", flags(folder, "lost", f"--ckpt_path={directory(folder, 'lost')}"))
    assert again.join() == [0], again.said()
    assert_same_run(folder, "lost")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "then"), [("fsdp2", 1), ("fsdp2_sharded", 2)])
def test_fully_sharded_processes_are_one_process_and_resume(folder, one_run, strategy, then):
    """A consolidated checkpoint is resumed by one process without FSDP2, a sharded one by two with it."""
    killed = Run(folder / f"{strategy}.log", flags(folder, strategy, *several(2, strategy)), torchrun(2),
                 kill={0: "5:0", 1: "5:0"})  # fmt: skip
    assert 0 not in killed.join(), killed.said()
    checkpoint = directory(folder, strategy) / "checkpoints" / "last.ckpt"
    assert checkpoint.is_dir() == (strategy == "fsdp2_sharded") and damage(checkpoint) is None
    more = several(2, strategy) if then == 2 else []
    again = Run(folder / f"{strategy}.log", flags(folder, strategy, *more, f"--ckpt_path={checkpoint}"),
                torchrun(2) if then == 2 else None)  # fmt: skip
    assert again.join() == [0] * then, again.said()
    assert_same_run(folder, strategy)


@pytest.mark.slow
def test_another_global_batch_is_refused_in_one_line(folder, one_run):
    run = Run(folder / "refused.log", flags(folder, "refused", *several(2)[:2], f"--ckpt_path={one_run}"), torchrun(2))
    assert run.join() == [2, 2]
    lines = [line for line in run.said().splitlines() if "error" in line]
    assert len(lines) == 2 and all("keep batch_size × processes at 8" in line for line in lines), run.said()
