"""The main job through its real entry points: train, resume after a kill, evaluate, compare."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval as evaluation
import slms
import train
from slms.report.metrics_csv import read_rows
from slms.report.results import read_results
from slms.sae.load import load
from tests.alike import assert_alike

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "--config=routed_tinystories.yaml",
    "--model.base.source=embedded",
    "--data.block_size=64",
    "--data.batch_size=4",
    "--data.train_tokens=8192",
    "--data.epoch_tokens=4096",
    "--data.val_tokens=4096",
    "--model.calibration_tokens=2048",
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
]


def run(directory: Path, *flags: str, name: str = "run") -> Path:
    """Train in this process; the run directory it made."""
    train.main([*TINY, f"--output_dir={directory}", f"--name={name}", *flags])
    (made,) = (directory / f"{name}").iterdir()
    return made


@pytest.fixture(scope="module")
def routed(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("runs"))


FIGURES = ("llm_monosemanticity.png", "llm_monosemanticity.svg", "evolution.png", "evolution.svg")


def undocumented(directory: Path) -> list[str]:
    """The files of a run that docs/formats.md does not name."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([^`\s|]+)`", page))
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [str(path) for path in files if not any(fnmatch(path.name, name) for name in names)]


def test_a_run_leaves_what_the_design_promises(routed):
    assert undocumented(routed) == []
    card = ModelCard.load(routed / "model" / "README.md")
    (perplexity,) = card.data.eval_results
    assert perplexity.metric_value == round(read_results(routed).losses.model.perplexity, 4)
    written = "config.yaml checkpoints/last.ckpt model/model.safetensors metrics.csv".split()
    for name in (*written, *FIGURES, "llm_routing_results.json"):
        assert (routed / name).stat().st_size > 0, name
    results = read_results(routed)
    assert results.run.role == "routed" and results.base.source == "embedded"
    assert results.run.tokens_trained == 8192 and results.run.steps == 32
    densities = {row.place: row.value for row in results.rows if row.metric == "density"}
    assert densities == pytest.approx({f"L{layer}.mlp": 11 / 32 for layer in range(1, 7)}, abs=1e-6)
    assert results.losses.dense is not None and results.compute is not None
    assert abs(results.compute.active_fraction - (2 + 6 * 11 / 32) / 8) < 1e-6


def test_every_epoch_is_measured_in_metrics_csv_and_tensorboard(routed):
    rows = read_rows(routed / "metrics.csv")
    for metric in ("purity", "entropy", "utilization"):
        epochs = {row.step for row in rows if (row.stage, row.metric) == ("val", metric) and row.place == "L1.mlp"}
        assert len(epochs) == 2, (metric, epochs)
    events = EventAccumulator(str(routed), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    assert {"val/purity/L1.mlp", "val/loss", "train/loss/balance"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] and events.Tags()["tensors"]


def test_training_and_eval_give_the_same_number(routed, tmp_path, capsys):
    evaluation.main(["perplexity", str(routed), f"--output_dir={tmp_path}"])
    measured = json.loads(next((tmp_path / "perplexity").rglob("perplexity.json")).read_text())
    trained = read_results(routed).losses
    assert abs(measured["nats"] - trained.model.nats) < 1e-6
    assert measured["by_document"]["tokens"] == trained.by_document.tokens
    assert measured["by_document"]["nats"] == pytest.approx(trained.by_document.nats, rel=1e-4)
    assert f"{measured['nats']:.4f}" in capsys.readouterr().out
    logged = [row.value for row in read_rows(routed / "metrics.csv") if (row.stage, row.metric) == ("val", "loss")]
    assert len(logged) == 2 and abs(measured["nats"] - logged[-1]) < 1e-6  # the last epoch's, not the mean of both


def test_eval_pathways_gives_the_run_s_own_numbers(routed, tmp_path):
    evaluation.main(["pathways", str(routed), f"--output_dir={tmp_path}"])
    (directory,) = (path.parent for path in (tmp_path / "pathways").rglob("llm_monosemanticity.png"))
    again, first = read_results(directory), read_results(routed)
    assert again.run.name == first.run.name and again.base == first.base
    assert_alike([replace(row, seed=0) for row in again.rows], [replace(row, seed=0) for row in first.rows])
    assert abs(again.losses.dense.nats - first.losses.dense.nats) < 1e-6
    assert (directory / "llm_monosemanticity.png").stat().st_size > 10_000


def test_the_saved_model_is_a_hugging_face_model(routed):
    model, tokenizer = slms.load_model(routed / "model")
    again = AutoModelForCausalLM.from_pretrained(routed / "model")
    ids = AutoTokenizer.from_pretrained(routed / "model")("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    cached = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    whole = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(cached, whole) and cached.shape[1] > ids.shape[1]
    assert tokenizer.decode(cached[0]).startswith("Once upon a time")


def test_controls_are_one_flag_each_and_compare_puts_them_side_by_side(routed, tmp_path, capsys):
    dense = run(tmp_path, "--model.control=dense", name="dense")
    static = run(tmp_path, "--model.control=static_flops", name="static")
    assert [read_results(r).run.role for r in (dense, static)] == ["dense", "static"]
    assert read_results(dense).compute.active_fraction == 1.0
    made = read_results(static)
    assert made.control_run == {"name": "static_flops", "neurons": {f"L{i}.mlp": 120 for i in range(1, 7)}}
    assert made.compute.mlp_routed == read_results(routed).compute.mlp_routed
    rows = read_rows(dense / "metrics.csv")
    assert {r.place for r in rows if (r.stage, r.metric) == ("train", "loss")} >= {"lm", "distill_logits"}
    evaluation.main(["compare", str(dense), str(static), str(routed), f"--output_dir={tmp_path}"])
    table = capsys.readouterr().out
    assert all(word in table for word in ("dense", "static", "routed"))
    written = {path.name for path in (tmp_path / "compare").rglob("*") if path.is_file()}
    assert written == {"compare.csv", "compare.png", "compare.svg"}


def losses(directory: Path) -> dict[int, float]:
    return {
        r.step: r.value
        for r in read_rows(directory / "metrics.csv")
        if (r.stage, r.metric) == ("train", "loss") and r.place == "lm"
    }


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_losses_of_an_uninterrupted_one(tmp_path):
    flags = [*TINY, f"--output_dir={tmp_path}", "--checkpoint.every_n_train_steps=5", "--trainer.log_every_n_steps=1"]
    train.main([*flags, "--name=whole"])
    (whole,) = (tmp_path / "whole").iterdir()
    command = [sys.executable, "train.py", *flags, "--name=killed"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums in another order calibrate differently
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 240
    while not list((tmp_path).glob("killed/*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = (tmp_path / "killed").iterdir()
    assert not (killed / "llm_routing_results.json").exists()
    train.main([*flags, f"--ckpt_path={killed}"])
    assert losses(killed) == losses(whole)
    assert read_results(killed).losses.model == read_results(whole).losses.model


def test_sparse_autoencoders_train_from_their_yaml_and_are_evaluated(tmp_path):
    flags = [
        "--config=sae_tinystories.yaml",
        "--model.base.source=embedded",
        "--data.train_tokens=8192",
        "--data.epoch_tokens=4096",
        "--data.val_tokens=2048",
        f"--output_dir={tmp_path}",
        "--name=sae",
        "--trainer.accelerator=cpu",
    ]
    train.main(flags)
    (made,) = (tmp_path / "sae").iterdir()
    coder = made / "saes" / "residual.3"
    assert undocumented(made) == []
    assert (coder / "sae_weights.safetensors").is_file() and (made / "checkpoints" / "last.ckpt").is_file()
    assert {row.metric for row in read_rows(made / "metrics.csv") if row.stage == "val"} >= {"fvu", "l0"}
    evaluation.main(["sae", str(made), "--n_tokens=2048", f"--output_dir={tmp_path / 'out'}", "--control_tokens=2048"])
    assert len(list((tmp_path / "out" / "sae").rglob("quality.json"))) == 2


@pytest.mark.slow
def test_sigterm_saves_the_coders_and_the_run_resumes(tmp_path):
    flags = [
        "--config=sae_tinystories.yaml",
        "--model.base.source=embedded",
        "--data.train_tokens=16384",
        "--data.epoch_tokens=16384",
        "--data.val_tokens=2048",
        "--data.buffer.chunk_tokens=4096",
        "--data.buffer.batch_size=64",
        "--checkpoint.every_n_train_steps=3",
        f"--output_dir={tmp_path}",
        "--name=ended",
        "--trainer.accelerator=cpu",
    ]
    command, env = [sys.executable, "train.py", *flags], os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("ended/*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    (run,) = (tmp_path / "ended").iterdir()
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < saved["global_step"] < 512
    weights = load(run / "saes" / "residual.3").W_dec
    trained = saved["state_dict"]["coders.0.coder.W_dec"]  # rows of any norm; saved ones have norm 1
    torch.testing.assert_close(weights, trained / trained.norm(dim=1, keepdim=True), atol=1e-6, rtol=0)
    train.main([*flags, f"--ckpt_path={run}", "--trainer.max_epochs=1"])
    assert not torch.equal(load(run / "saes" / "residual.3").W_dec, weights)
