"""Every Trainer option, for each kind of job, has the effect that Lightning documents, or is refused in one line.

An option of a new Lightning that has no row here fails `test_every_option_has_a_row`.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import Namespace

from slms.lit.trainer_options import REFUSED, check_trainer
from tests.jobs import BATCHES, JOBS, Outcome, run, start


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch, tmp_path):
    """Each run in a directory of its own; what options set for the whole process is set back."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("slms.callbacks.evolution.write_figure", lambda *args: None)  # half a second each
    monkeypatch.setattr("slms.callbacks.results.write_figure", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@dataclass
class Used:
    """Options of one run, and what must be true after it."""

    options: list[str]
    effect: Callable[[Outcome], Any]
    jobs: tuple[str, ...] = field(default=JOBS)


def plain(o: Outcome) -> bool:
    """What a run leaves with every option at its default."""
    assert o.trainer.world_size == 1 and o.trainer.strategy.root_device.type == "cpu"
    assert o.trainer.global_step == BATCHES and o.dtype == torch.float32
    assert o.trainer.gradient_clip_val == 1.0
    assert o.steps("train") == list(range(BATCHES)) and o.steps("val")[-1] == BATCHES - 1
    assert o.files("events*") and o.files("last.ckpt") and not o.files("*profile*")
    assert "epoch 1/1" in o.printed and "Params" not in o.printed
    assert not any(o.watch.flags.values()) and not any(sanity for sanity, _ in o.watch.validated)
    return bool(o.files("llm_routing_results.json")) != bool(o.files("sae_weights.safetensors"))


def csv_logger(o: Outcome) -> bool:
    (directory,) = o.files("version_0")
    assert {"metrics.csv", "hparams.yaml"} <= {path.name for path in directory.iterdir()}
    assert "epoch_tokens" in (directory / "hparams.yaml").read_text()
    return not o.files("events*") and o.steps("train") == list(range(BATCHES)) and bool(o.files("last.ckpt"))


def two_loggers(o: Outcome) -> bool:
    assert [path.relative_to(o.out).parts[0] for path in o.files("events*")] == ["tb"]
    assert "epoch_tokens" not in o.files("hparams.yaml")[0].read_text()
    return len(o.files("metrics.csv")) == 2


def beside_tensorboard(o: Outcome) -> bool:
    assert {path.parent for path in o.files("events*")} == {o.run}
    csv = next(path for path in o.files("metrics.csv") if path.parent != o.run).read_text()
    return all(row.metric in csv for row in o.rows("val"))


def same_batches(o: Outcome) -> bool:
    first, second = o.watch.batches
    return len(first) == 2 and first == second and len(o.watch.validated) == 4


def nothing_written(o: Outcome) -> bool:
    assert "2 batch(es) of training and of validation passed; nothing is written" in o.printed
    return o.trainer.global_step == 2 and not list(o.out.iterdir())


CSV = "{class_path: CSVLogger, init_args: {save_dir: csv}}"
STOPPING = "{class_path: EarlyStopping, init_args: {monitor: %s, patience: 1, min_delta: 1000}}"

USED = [
    Used([], plain),
    Used(["accelerator=cpu", "strategy=ddp", "precision=bf16-true"], lambda o: o.dtype == torch.bfloat16),
    Used(["precision=64-true"], lambda o: o.dtype == torch.float64),
    Used(["precision=bf16-mixed"], lambda o: o.dtype == torch.float32 and o.trainer.precision == "bf16-mixed"),
    Used(
        ["logger=false", "max_steps=2", "log_every_n_steps=50"],
        lambda o: not o.files("events*") and o.steps("train") == [1] and o.trainer.global_step == 2,
    ),
    Used(["logger=CSVLogger", "logger.save_dir=csv"], csv_logger),
    Used(["logger=[TensorBoard, {class_path: CSVLogger, init_args: {save_dir: csv}}]"], beside_tensorboard),
    Used(
        [
            f"logger=[{CSV}, {{class_path: TensorBoardLogger, init_args: {{save_dir: tb}}}}]",
            "enable_autolog_hparams=false",
            "profiler=simple",
            "limit_val_batches=0",
        ],
        lambda o: two_loggers(o) and len(o.files("fit-profile.txt")) == 1 and not o.steps("val"),
    ),
    Used(
        ["callbacks=[LearningRateMonitor]", "limit_train_batches=2", "limit_val_batches=1", "max_epochs=2"],
        lambda o: (
            "lr-" in (o.run / "metrics.csv").read_text() and o.trainer.global_step == 4 and len(o.watch.validated) == 2
        ),
    ),
    Used(
        ["limit_train_batches=0.5", "profiler=advanced"],
        lambda o: o.trainer.global_step == BATCHES // 2 and len(o.files("fit-profile.txt")) == 1,
    ),
    Used(["fast_dev_run=2"], nothing_written),
    Used(
        ["max_epochs=5", "min_epochs=3", f"callbacks=[{STOPPING % 'val/loss'}]", "limit_train_batches=1"],
        lambda o: o.trainer.global_step == 3,
        ("language model",),
    ),
    Used(
        ["max_epochs=5", "min_epochs=3", f"callbacks=[{STOPPING % 'val/fvu/residual.0'}]", "limit_train_batches=1"],
        lambda o: o.trainer.global_step == 3,
        ("coders",),
    ),
    Used(["max_time=00:00:00:00"], lambda o: o.trainer.global_step < BATCHES),
    Used(["max_time=00:00:00:00", "min_epochs=0", "min_steps=4"], lambda o: o.trainer.global_step == 4),
    Used(["overfit_batches=2", "max_epochs=2"], same_batches),
    Used(
        ["val_check_interval=2", "log_every_n_steps=2"],
        lambda o: o.steps("val")[:3] == [1, 3, 5] and o.steps("train") == [1, 3, 5],
    ),
    Used(
        ["check_val_every_n_epoch=null", "val_check_interval=4", "max_epochs=2"],
        lambda o: o.steps("val")[:3] == [3, 7, 11],
    ),
    Used(["check_val_every_n_epoch=2", "max_epochs=2", "limit_train_batches=2"], lambda o: o.steps("val") == [3]),
    Used(["num_sanity_val_steps=2"], lambda o: [sanity for sanity, _ in o.watch.validated[:3]] == [True, True, False]),
    Used(
        ["enable_checkpointing=false", "enable_progress_bar=false", "enable_model_summary=true"],
        lambda o: not o.files("*.ckpt") and "epoch 1/1" not in o.printed and "Params" in o.printed,
    ),
    Used(
        ["accumulate_grad_batches=4", "gradient_clip_val=1e-4", "gradient_clip_algorithm=norm"],
        lambda o: o.trainer.global_step == 2 and max(o.watch.gradients[3], o.watch.gradients[5]) < 1.01e-4,
    ),
    Used(
        ["gradient_clip_val=1e-4", "gradient_clip_algorithm=value", "precision=bf16-mixed"],
        lambda o: max(o.watch.largest) < 1.01e-4,
        ("language model",),
    ),
    Used(["gradient_clip_val=0"], lambda o: max(o.watch.gradients) > 1.01, ("language model",)),
    Used(
        ["deterministic=true", "detect_anomaly=true"],
        lambda o: o.watch.flags["deterministic"] and o.watch.flags["anomaly"],
    ),
    Used(
        ["benchmark=true", "plugins=[LightningEnvironment]", "devices=1", "num_nodes=1"],
        lambda o: (
            o.watch.flags["benchmark"]
            and type(o.trainer._accelerator_connector.cluster_environment).__name__ == "LightningEnvironment"
            and o.trainer.num_devices == o.trainer.num_nodes == 1
        ),
    ),
]

NOT_TAKEN = [
    ("strategy", "ddp_spawn", "must be one of auto, ddp", JOBS),
    ("strategy", "deepspeed_stage_2", "must be one of auto, ddp", JOBS),
    ("strategy", Namespace(class_path="lightning.pytorch.strategies.FSDPStrategy"), "must be one of auto, ddp", JOBS),
    ("strategy", "fsdp2", "must be one of auto, ddp", ("coders",)),
    ("precision", "16-true", "underflow", JOBS),
    ("precision", "transformer-engine", "replaces the layers", JOBS),
    ("gradient_clip_algorithm", "value", "by its norm", ("coders",)),
    ("gradient_clip_val", -1.0, "must not be negative", JOBS),
    ("limit_train_batches", 0, "must be above 0", JOBS),
    ("limit_train_batches", 0.0, "must be above 0", JOBS),
    ("max_epochs", 0, "must be above 0", JOBS),
    ("max_steps", 0, "must be above 0", JOBS),
    ("max_epochs", -1, "needs an end", JOBS),
    ("log_every_n_steps", 0, "must be at least 1", JOBS),
    *((name, "x" if taken is None else not taken, reason, JOBS) for name, (taken, reason) in REFUSED.items()),
]
"""Option, value, words of the reason."""

REFUSALS = [
    ("barebones=true", REFUSED["barebones"][1]),
    ("plugins=[lightning.pytorch.plugins.io.AsyncCheckpointIO]", "WholeCheckpointIO writes checkpoints"),
    ("logger=WandbLogger", "error: WandbLogger needs the package wandb: pip install 'wandb>="),
    ("logger=Wandb", "error: --trainer.logger Wandb: there is no such class; one of your own is package.module.Class"),
    ("accelerator=tpu", "torch_xla"),
    ("devices=0", "devices"),
    ("overfit_batches=1.5", "overfit_batches"),
    ("val_check_interval=abc", "val_check_interval"),
]
"""What the whole command line refuses, in part by Lightning's own checks."""


def test_every_option_has_a_row():
    named = {option.split("=")[0].split(".")[0] for case in USED for option in case.options}
    named |= {option for option, *_ in NOT_TAKEN}
    assert set(inspect.signature(L.Trainer).parameters) == named


@pytest.mark.parametrize(
    ("job", "case"),
    [(job, case) for case in USED for job in case.jobs],
    ids=lambda v: v if isinstance(v, str) else " ".join(v.options) or "defaults",
)
def test_used(job, case, folder, tmp_path, capsys):
    assert case.effect(run(job, folder, tmp_path, case.options, capsys))


@pytest.fixture(scope="module")
def taken():
    """The Trainer's options as a run has them."""
    defaults = {name: p.default for name, p in inspect.signature(L.Trainer).parameters.items()}
    return defaults | {"max_epochs": 1, "use_distributed_sampler": False}


@pytest.mark.parametrize(("job", "name", "value", "reason"), [(job, *row[:3]) for row in NOT_TAKEN for job in row[3]])
def test_not_taken(job, name, value, reason, taken):
    check_trainer(Namespace(taken), coders=job == "coders")
    with pytest.raises(ValueError) as refusal:
        check_trainer(Namespace(taken | {name: value}), coders=job == "coders")
    line = str(refusal.value)
    assert line.startswith(f"--trainer.{name} is ") and reason in line and "\n" not in line


def test_a_stream_is_not_read_again_and_a_resumed_run_is_no_rehearsal(taken):
    with pytest.raises(ValueError, match=r"overfit_batches is 2; it needs data\.stream=false"):
        check_trainer(Namespace(taken | {"overfit_batches": 2}), streamed=True)
    with pytest.raises(ValueError, match=r"fast_dev_run is True; .*--ckpt_path"):
        check_trainer(Namespace(taken | {"fast_dev_run": True}), resumed=True)


@pytest.mark.parametrize(("option", "reason"), REFUSALS)
def test_refused_in_one_line_before_anything_is_written(option, reason, folder, tmp_path, capsys):
    if option == "logger=WandbLogger" and find_spec("wandb"):
        pytest.skip("wandb is installed, so there is nothing to refuse")
    with pytest.raises(SystemExit) as stop:
        run(JOBS[REFUSALS.index((option, reason)) % 2], folder, tmp_path, [option], capsys)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Seed set" not in line]
    assert len(lines) == 1 and lines[0].startswith("train.py: error: ") and reason in lines[0], lines
    assert not list(tmp_path.iterdir())


def test_wandb_offline_gets_the_numbers_and_the_configuration(folder, tmp_path, capsys, monkeypatch):
    offline = pytest.importorskip("wandb", reason="wandb is no dependency; `pip install wandb` runs this")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = f"{{class_path: WandbLogger, init_args: {{offline: true, save_dir: {tmp_path}}}}}"
    out = run("language model", folder, tmp_path, [f"logger=[TensorBoard, {wandb}]"], capsys)
    offline.finish()
    (file,) = out.files("run-*.wandb")
    content = file.read_bytes()
    assert out.files("events*") and b"epoch_tokens" in content
    metrics = {f"{row.stage}/{row.metric}" for row in out.rows("val")}
    assert metrics and all(metric.encode() in content for metric in metrics)


def test_devices_and_nodes_make_processes(folder, tmp_path):
    """That they compute one run together is in tests/test_distributed.py."""
    trainer = start("language model", folder, tmp_path, ["devices=2", "num_nodes=3"]).trainer
    assert (trainer.world_size, type(trainer.strategy).__name__) == (6, "DDPStrategy")
