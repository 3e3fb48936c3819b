"""One, two and four processes with the same global batch are the same run, also if resumed on another number."""

import json
import signal
import socket
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from slms.data.corpora import CorpusConfig
from slms.data.module import TextData
from slms.lit.checkpoint import damage
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED
from slms.report.metrics_csv import read_rows
from slms.report.results import read_results
from tests.alike import assert_alike
from tests.processes import Run, directory, flags, slurm, torchrun


def several(world, strategy="ddp"):
    return [f"--trainer.devices={world}", f"--trainer.strategy={strategy}", f"--data.batch_size={8 // world}"]


def numbers(folder, name):
    """(stage, metric, place, step) → value; not which tokens the first process keeps to compare routers by."""
    rows = read_rows(directory(folder, name) / "metrics.csv")
    return {row[:1] + row[2:5]: row.value for row in rows if row.metric not in ("stability", "saturation")}


def assert_same_run(folder, name, as_name="one"):
    """Losses to 1e-5; what is counted (utilization, pathway × token tables and all that follows) exactly."""
    one, other = numbers(folder, as_name), numbers(folder, name)
    assert one.keys() == other.keys()
    for key, value in one.items():
        is_loss = key[2] == "loss" or key[2] in ("loss", "perplexity", "kl") or key[1:3] == ("train", "loss")
        assert abs(other[key] - value) <= (1e-5 * max(1, abs(value)) if is_loss else 0), (key, value, other[key])
    first, second = (read_results(directory(folder, which)) for which in (as_name, name))
    assert_alike(first.rows, second.rows)
    assert first.pathways == second.pathways
    assert first.run.tokens_trained == second.run.tokens_trained
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
def test_four_micro_batches_a_step_are_one(folder, one_run):
    cut = Run(folder / "cut.log", flags(folder, "cut", "--data.batch_size=2", "--trainer.accumulate_grad_batches=4"))
    assert cut.join() == [0], cut.said()
    assert_same_run(folder, "cut")


@pytest.mark.slow
def test_neurons_move_alike_in_two_processes(folder):
    more = [
        "--model.routing={n_pathways: 4, k: 2, every_n_layers: 2, last_layer: -1, router: linear, gate: unit, "
        "partition: random}",
        "--model.assignment={every: 2, until: 1.0, least: 0.0}",
    ]
    alone = Run(folder / "moving.log", flags(folder, "moving", *more))
    assert alone.join() == [0], alone.said()
    two = Run(folder / "moving2.log", flags(folder, "moving2", *more, *several(2)), torchrun(2))
    assert two.join() == [0, 0], two.said()
    moved = [value for key, value in numbers(folder, "moving").items() if key[1:3] == ("assignment", "moved")]
    assert len(moved) == 6 and sum(value > 0 for value in moved) == 3
    assert_same_run(folder, "moving2", "moving")


@pytest.mark.slow
def test_layers_share_a_router_alike_in_two_processes(folder):
    more = ["--model.routing={n_pathways: 4, k: 2, every_n_layers: 1, last_layer: -1, router_layers: 2}"]
    alone = Run(folder / "shared.log", flags(folder, "shared", *more))
    assert alone.join() == [0], alone.said()
    for strategy in ("ddp", "fsdp2"):
        name = f"shared-{strategy}"
        two = Run(folder / f"{name}.log", flags(folder, name, *more, *several(2, strategy)), torchrun(2))
        assert two.join() == [0, 0], two.said()
        assert_same_run(folder, name, "shared")


@pytest.mark.slow
def test_bf16(folder, one_run):
    """Autocast to bfloat16: the losses of fp32 to the two digits that it has."""
    run = Run(folder / "bf16.log", flags(folder, "bf16", "--trainer.precision=bf16-mixed"))
    assert run.join() == [0], run.said()
    assert (
        abs(read_results(directory(folder, "bf16")).losses.model.nats - read_results(one_run).losses.model.nats) < 0.02
    )
    assert numbers(folder, "bf16") != numbers(folder, "one")


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
def test_a_process_lost_before_the_first_checkpoint_is_not_to_be_resumed(folder):
    lost = Run(folder / "early.log", flags(folder, "early", *several(2)), torchrun(2), kill={1: "1:0"})
    assert lost.join() == [2, -signal.SIGKILL], lost.said()
    (line,) = [line for line in lost.said().splitlines() if "error:" in line]
    assert line.endswith("no checkpoint exists yet; run the same command again"), line


@pytest.mark.slow
def test_every_process_names_the_directory_of_the_first(folder):
    """Also if it began in another second, by whose name it would have called the run."""
    ranks = torchrun(2)
    first = Run(folder / "clock0.log", flags(folder, "clock", *several(2)), ranks[:1], kill={0: "4:0.02"})
    time.sleep(1.1)
    second = Run(folder / "clock1.log", flags(folder, "clock", *several(2)), ranks[1:])
    assert first.join() + second.join() == [-signal.SIGKILL, 2], second.said()
    (line,) = [line for line in second.said().splitlines() if "error:" in line]
    assert line.endswith(f"resume with --ckpt_path={directory(folder, 'clock')}"), line


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(folder):
    first, _ = torchrun(2)
    with socket.socket() as other:
        other.bind(("0.0.0.0", int(first["MASTER_PORT"])))
        run = Run(folder / "port.log", flags(folder, "port", *several(2)), [first])
        assert run.join() == [2], run.said()
    (line,) = [line for line in run.said().splitlines() if "error:" in line]
    assert f"port {first['MASTER_PORT']} is taken; set another MASTER_PORT" in line
    assert not (folder / "port").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "then"), [("fsdp2", 1), ("fsdp2_sharded", 2)])
def test_fully_sharded_processes_are_one_process_and_resume(folder, one_run, strategy, then):
    """A consolidated checkpoint is resumed by one process without FSDP2, a sharded one by two with it."""
    killed = Run(
        folder / f"{strategy}.log",
        flags(folder, strategy, *several(2, strategy)),
        torchrun(2),
        kill={0: "5:0", 1: "5:0"},
    )
    assert killed.join() == [-signal.SIGKILL, -signal.SIGKILL], killed.said()
    checkpoint = directory(folder, strategy) / "checkpoints" / "last.ckpt"
    assert checkpoint.exists(), killed.said()
    assert checkpoint.is_dir() == (strategy == "fsdp2_sharded") and damage(checkpoint) is None
    more = several(2, strategy) if then == 2 else []
    again = Run(
        folder / f"{strategy}.log",
        flags(folder, strategy, *more, f"--ckpt_path={checkpoint}"),
        torchrun(2) if then == 2 else None,
    )
    assert again.join() == [0] * then, again.said()
    assert_same_run(folder, strategy)


@pytest.mark.slow
def test_another_global_batch_is_refused_in_one_line(folder, one_run):
    run = Run(folder / "refused.log", flags(folder, "refused", *several(2)[:2], f"--ckpt_path={one_run}"), torchrun(2))
    assert run.join() == [2, 2]
    lines = [line for line in run.said().splitlines() if "error" in line]
    assert len(lines) == 2 and all("keep batch_size × processes at 8" in line for line in lines), run.said()


class Reader(L.LightningModule):
    """Learns nothing and remembers the first token ids of each batch."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"][:, :8].tolist())
        return self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def read_streams(args):
    """Eight batches of a streamed corpus at once, and in two runs with a checkpoint between them."""
    corpus, folder = Path(args[0]), Path(args[1])
    seen = {}
    for name, steps, start in (("whole", 8, None), ("first", 3, None), ("second", 8, folder / "first.ckpt")):
        module = Reader()
        data = TextData(
            CorpusConfig(str(corpus), validation=str(corpus)),
            read_tokenizer(EMBEDDED["stories-1m"]),
            block_size=32,
            batch_size=2,
            train_tokens=64,
            epoch_tokens=640,
            val_tokens=64,
            stream=True,
        )
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            limit_val_batches=0,
            default_root_dir=folder,
        )
        trainer.fit(module, data, ckpt_path=start, weights_only=True)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
        seen[name] = module.seen
    assert seen["first"] + seen["second"] == seen["whole"], seen
    (folder / f"seen.{trainer.global_rank}").write_text(json.dumps(seen["whole"]))


def test_streams_of_two_processes_resume_where_each_stood(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"The dog saw {i} cats. " * (1 + i % 3)}) + "\n" for i in range(40)))
    run = Run(tmp_path / "log", [str(corpus), str(tmp_path)], torchrun(2), main=read_streams)
    assert run.join() == [0, 0], run.said()
    first, second = (json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in range(2))
    assert len(first) == len(second) == 8 and not any(a == b for a, b in zip(first, second, strict=True))
