"""A resumed run uses a changed option, or refuses it by name."""

import sys
from pathlib import Path

import pytest
import yaml

import train
from slms.callbacks import CALLBACKS, CODER_CALLBACKS
from slms.lit.cli import TrainCLI
from slms.lit.language_model import LanguageModel
from slms.lit.resume import COMPARED, KEPT, USED, check_resumed, fate_of
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData
from slms.report.metrics_csv import read_rows
from tests.processes import flags


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


class Parsed(TrainCLI):
    """Nothing but the configuration."""

    def before_instantiate_classes(self):
        raise StopIteration(self.plain_config())


def configuration(*args):
    with pytest.raises(StopIteration) as stop:
        Parsed(*args)
    return stop.value.value


@pytest.fixture(scope="module")
def configurations():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        yield [
            configuration(CALLBACKS, ["--config=routed_tinystories.yaml"]),
            configuration(CODER_CALLBACKS, ["--config=sae_tinystories.yaml"], SparseAutoencoder, ActivationData),
        ]


def options(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_option_has_its_place_in_one_table(configurations):
    found = {option for config in configurations for option in options(config)}
    assert len(found) > 100
    for option in found:
        fate_of(option)
    entries = [*USED, *COMPARED, *KEPT]
    assert len(set(entries)) == len(entries)
    for entry in entries:  # no entry outlives its option
        assert any(option == entry or option.startswith(f"{entry}.") for option in found), entry


@pytest.mark.parametrize(
    ("option", "old", "new", "kept"),
    [
        ("model.routing.partition", "coactivation", "kmeans", True),
        ("model.routing", {"k": 2}, None, True),
        ("data.seed", 0, 1, True),
        ("data.block_size", 32, 64, True),
        ("trainer.overfit_batches", 0.0, 2, True),
        ("model.optimizer.lr", 1e-3, 1e-4, False),
        ("model.routing.k", 2, 3, False),
        ("trainer.max_epochs", 1, 2, False),
        ("trainer.logger", None, {"class_path": "CSVLogger"}, False),
        ("data.corpus.name", "a.txt", "b.txt", False),
    ],
)
def test_what_is_kept_is_refused_with_both_values(option, old, new, kept):
    def nested(value):
        for key in reversed(option.split(".")):
            value = {key: value}
        return value

    if kept:
        with pytest.raises(ValueError) as refusal:
            check_resumed(nested(old), nested(new))
        line = str(refusal.value)
        assert f"--{option} is {'null' if new is None else new}; the run was started with {old}" in line
    else:
        check_resumed(nested(old), nested(new))
    check_resumed(nested(old), nested(old))


@pytest.mark.parametrize(
    ("option", "old", "new"), [("k", 4, 8), ("rule", "top_k", "top_p"), ("gate", "unit", "softmax")]
)
def test_a_static_control_keeps_what_decided_its_neurons(option, old, new):
    def with_control(control, value):
        return {"model": {"control": control, "routing": {option: value}}}

    for control in ("static", "static_flops", "static_time"):
        with pytest.raises(ValueError, match=rf"--model\.routing\.{option} is {new}; the run was started with {old}"):
            check_resumed(with_control(control, old), with_control(control, new))
    for control in (None, "dense", "frozen_router"):
        check_resumed(with_control(control, old), with_control(control, new))


def test_a_run_older_than_an_option_keeps_what_it_did():
    with pytest.raises(ValueError, match=r"--model\.train is mlps; the run was started with all"):
        check_resumed({"model": {"routing": None}}, {"model": {"routing": None, "train": "mlps"}})
    check_resumed({"model": {"routing": None}}, {"model": {"routing": None, "train": "all"}})


def test_the_corpus_of_a_stream_has_no_digest_and_is_kept():
    before, now = ({"data": {"stream": True, "corpus": {"name": name}}} for name in ("a.txt", "b.txt"))
    with pytest.raises(ValueError, match=r"--data\.corpus\.name is b\.txt; the run was started with a\.txt"):
        check_resumed(before, now)


@pytest.fixture(scope="module")
def started(folder, tmp_path_factory):
    """A run that stopped in its fifth step of six, with a checkpoint of four, and its arguments."""
    out = tmp_path_factory.mktemp("runs")
    more = [f"--output_dir={out}", "--results.save_model=false"]
    args = flags(folder, "r", *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])

        def killed(self, *args, **kwargs):
            super(LanguageModel, self).optimizer_step(*args, **kwargs)
            if self.global_step == 4:
                raise KeyError("killed")

        patch.setattr(LanguageModel, "optimizer_step", killed)
        with pytest.raises(KeyError):
            train.main(args)
    (run,) = (out / "r").iterdir()
    return run, args


def resumed(started, copy: Path, *more):
    """Losses of the steps after the resume, by step, and the module."""
    import shutil

    run, args = started
    shutil.copytree(run, copy)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        original = LanguageModel.on_train_start
        patch.setattr(LanguageModel, "on_train_start", lambda self: (made.append(self), original(self)))
        train.main([*args, f"--ckpt_path={copy}", *more])
    rows = [row for row in read_rows(copy / "metrics.csv") if (row.stage, row.metric) == ("train", "loss")]
    return (
        {row.step: row.value for row in rows if row.place == "lm"},
        made[0],
        yaml.safe_load((copy / "config.yaml").read_text()),
    )


@pytest.mark.slow
def test_another_learning_rate_is_used(started, tmp_path):
    """The rate of 1e-7 leaves the losses where they are; the run's own goes on lowering them."""
    same, _, _ = resumed(started, tmp_path / "same")
    slow, module, config = resumed(
        started,
        tmp_path / "slow",
        "--model.optimizer.lr=1e-7",
        "--model.optimizer.router_lr=1e-7",
        "--model.balance.weight=0.7",
        "--model.balance.momentum=0.5",
        "--model.routing.k=3",
        "--model.routing.tau=0.25",
        "--model.distill.logits=0.5",
        "--model.k_anneal=0.5",
        "--model.gate_ramp=0.9",
        "--nan_guard.max_rise=50",
    )
    assert config["model"]["optimizer"]["lr"] == 1e-7
    assert (
        max(group["initial_lr"] for group in module._configured for group in module.trainer.optimizers[0].param_groups)
        == 1e-7
    )
    assert same.keys() == slow.keys() and same[5] != slow[5]
    assert module.net.config.routing["k"] == 3
    assert {balance.momentum for balance in module.balances.values()} == {0.5}


@pytest.mark.slow
def test_a_lower_rate_is_the_remedy_for_a_loss_that_is_not_finite(started, tmp_path, capsys):
    copy = tmp_path / "nan"
    with pytest.raises(SystemExit):
        resumed(started, copy, "--model.optimizer.lr=1e30", "--trainer.gradient_clip_val=null")
    assert "it must be finite" in capsys.readouterr().err
    train.main([*started[1], f"--ckpt_path={copy}", "--model.optimizer.lr=1e-5"])
    assert (copy / "llm_routing_results.json").is_file()


def test_what_must_be_kept_is_refused_in_one_line_and_nothing_changes(started, tmp_path, capsys):
    run, args = started
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for more, words in (
        (["--model.routing.partition=random"], ["--model.routing.partition is random", "started with coactivation"]),
        (["--model.base.init=random", "--model.base.seed=5"], ["model.base has other weights"]),
        (["--data.corpus.hub=x", "--data.seed=3"], ["--data.seed is 3", "started with 0"]),
        (["--trainer.fast_dev_run=true"], ["--trainer.fast_dev_run is True", "--ckpt_path"]),
    ):
        with pytest.raises(SystemExit, match="2"):
            train.main([*args, f"--ckpt_path={run}", *more])
        line = [line for line in capsys.readouterr().err.splitlines() if "error:" in line][-1]
        assert all(word in line for word in words), line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_coders_is_no_checkpoint_of_a_language_model():
    coders, language = {"model": {"coders": [1]}}, {"model": {"routing": None}}
    for before, now in ((coders, language), (language, coders)):
        with pytest.raises(ValueError, match=r"--ckpt_path is a checkpoint of .*; the configuration trains"):
            check_resumed(before, now)
