"""An unknown option is named in full, with its nearest neighbours, wherever it stands."""

import sys
from dataclasses import dataclass

import pytest
import yaml
from jsonargparse import ArgumentParser

import eval as evaluation
import train
from slms.callbacks import CALLBACKS, CODER_CALLBACKS
from slms.commands import NAMES, command
from slms.lit.cli import TrainCLI
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData
from slms.option_names import OptionNames
from slms.routing.config import RoutingConfig
from slms.sae.config import CoderSpec


@dataclass
class Inner:
    rate: float = 0.1


@dataclass
class Outer:
    inner: Inner | None = None
    items: list[Inner] | None = None
    k: int = 3


@pytest.fixture
def names():
    parser = ArgumentParser()
    parser.add_class_arguments(Outer, "model")
    parser.add_argument("--trainer.logger", type=dict | None)
    return OptionNames(parser, ["trainer.logger"])


@pytest.mark.parametrize(
    "args",
    [
        ["--model.inner.rate=1"],
        ["--model.inner", "{rate: 2}"],
        ["--model.items=[{rate: 1}]"],
        ["--model.items+={rate: 1}"],
        ["--model.k", "-3"],
        ["--trainer.logger.save_dir=x"],
        ["--trainer.logger={save_dir: {a: 1}}"],
        ["--print_config", "--config=c.yaml", "--model.inner.help", "word"],
    ],
)
def test_known_options_pass(names, args):
    names.check_line(args)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--model.inner.rat=1"], "--model.inner.rat: there is no such option; the nearest are --model.inner.rate"),
        (["--model.inner={rat: 2}"], "--model.inner.rat: "),
        (["--model.items=[{rate: 1}, {rat: 1}]"], "--model.items.rat: "),
        (["--rate=1"], "the nearest are --model.inner.rate, --model.items.rate"),
        (["--zzzzzz=1"], "--zzzzzz: there is no such option; --help lists all"),
    ],
)
def test_unknown_ones_are_named_with_their_neighbours(names, args, named):
    with pytest.raises(ValueError) as refusal:
        names.check_line(args)
    assert named in str(refusal.value)


def error_of(main, args, capsys, monkeypatch) -> str:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match="2"):
        main(args)
    return capsys.readouterr().err.strip().splitlines()[-1]


CONFIG = "--config=routed_tinystories.yaml"


UNKNOWN = "there is no such option; the nearest are"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([CONFIG, "--model.routing.kk=3"], f"--model.routing.kk: {UNKNOWN} --model.routing.k,"),
        ([CONFIG, "--trainer.max_epoch=3"], f"--trainer.max_epoch: {UNKNOWN} --trainer.max_epochs,"),
        ([CONFIG, "--trainer.logger=CSVLogger", "--trainer.logger.dir=x"], "--trainer.logger.dir: its class has no"),
        (
            ["--config=sae_tinystories.yaml", "--model.coders=[{site: residual.3, coder: {kk: 3}}]"],
            f"--model.coders.coder.kk: {UNKNOWN} --model.coders.coder.k,",
        ),
        ([CONFIG, "--model.base", "."], "--model.base .: this is a section of options; a name is --model.base.name ."),
        ([CONFIG, "--model.distill=null"], "--model.distill null: a section of options takes a mapping or a YAML file"),
        ([CONFIG, "--data.corpus=a.txt"], "--data.corpus a.txt: this is a section of options; a name is --data.corpus"),
        ([], "name a config: --config NAME; there are controlled_tinystories.yaml"),
    ],
)
def test_train_names_them(args, named, capsys, monkeypatch):
    assert error_of(train.main, args, capsys, monkeypatch).startswith(f"train.py: error: {named}")


def test_a_config_s_unknown_key_is_named_with_its_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"routing": {"kk": 1}}}))
    line = error_of(train.main, [f"--config={tmp_path / 'c.yaml'}"], capsys, monkeypatch)
    assert f"{tmp_path / 'c.yaml'}: --model.routing.kk: there is no such option" in line
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"routing": {"n_pathways": "x"}}}))
    line = error_of(train.main, [CONFIG, f"--config={tmp_path / 'c.yaml'}"], capsys, monkeypatch)
    assert line == "train.py: error: --model.routing.n_pathways x: it must be a whole number"


def test_eval_names_them(capsys, monkeypatch):
    line = error_of(evaluation.main, ["perplexity", "stories-1m", "--blocksize=3"], capsys, monkeypatch)
    assert (
        line
        == "eval.py perplexity: error: --blocksize: there is no such option; the nearest are --block_size, --batch_size"
    )


class Parsed(TrainCLI):
    """Nothing but the parser."""

    def before_instantiate_classes(self):
        raise StopIteration(self.parser)


@pytest.mark.parametrize("made", [*NAMES, "RoutingConfig", "CoderSpec", "train", "train coders"])
def test_every_option_has_words(made, monkeypatch):
    """`Args:` of the class or function that takes it: `--help` shows them."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    if made.startswith("train"):
        coders = [SparseAutoencoder, ActivationData] if made == "train coders" else []
        config = f"--config={'sae' if coders else 'routed'}_tinystories.yaml"
        with pytest.raises(StopIteration) as stop:
            Parsed(CODER_CALLBACKS if coders else CALLBACKS, [config], *coders)
        parser = stop.value.value
    else:
        parser = ArgumentParser()
        classes = {"RoutingConfig": RoutingConfig, "CoderSpec": CoderSpec}
        if made in classes:
            parser.add_class_arguments(classes[made])
        else:
            parser.add_function_arguments(command(made))
    assert not [action.dest for action in parser._actions if not (action.help or "").strip()]
