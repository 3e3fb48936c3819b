"""Both command lines take booleans as flags, refuse what is wrong in plain words, and fit the terminal."""

from typing import Literal

import pytest

from slms.callbacks import CALLBACKS
from slms.cli import Parser, hanging
from slms.commands import command, overview
from slms.lit.parser import TrainParser
from slms.main import evaluate, train
from slms.measure.kernels import KernelOptions


def evaluation() -> Parser:
    parser = Parser(prog="eval.py")
    parser.add_class_arguments(KernelOptions, "kernels")
    return parser


def training() -> TrainParser:
    parser = TrainParser(prog="train.py")
    parser.add_lightning_class_args(CALLBACKS["kernels"], "kernels")
    return parser


@pytest.mark.parametrize("make", [evaluation, training])
@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--kernels.calibrate"], True),
        (["--kernels.calibrate", "true"], True),
        (["--kernels.calibrate=false"], False),
        (["--kernels.calibrate", "--n", "3"], True),
    ],
)
def test_a_boolean_is_a_flag(make, words, value):
    parser = make()
    parser.add_argument("--n", type=int, default=3)
    parsed = parser.parse_args(words)
    assert parsed.kernels.calibrate is value and parsed.n == 3


@pytest.mark.parametrize("make", [evaluation, training])
def test_other_words_are_refused(make, capsys):
    with pytest.raises(SystemExit, match="2"):
        make().parse_args(["--kernels.calibrate", "maybe"])
    assert "kernels.calibrate" in capsys.readouterr().err


@pytest.mark.parametrize("make", [evaluation, training])
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (int, "a whole number"),
        (int | None, "a whole number"),
        (float, "a number"),
        (Literal["mean", "zero"], "one of mean, zero"),
    ],
)
def test_a_wrong_value_is_named_with_its_option_and_rule(make, kind, rule, capsys):
    parser = make()
    parser.add_argument("--n_tokens", type=kind)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--n_tokens", "12k"])
    assert capsys.readouterr().err == f"{parser.prog}: error: --n_tokens 12k: it must be {rule}\n"


@pytest.mark.parametrize("program", [train, evaluate])
@pytest.mark.parametrize(("words", "named"), [(["study", "--config="], "--config"), (["x", ""], "an argument")])
def test_an_empty_word_is_refused_as_it_was_typed(program, words, named, capsys):
    with pytest.raises(SystemExit, match="2"):
        program(words)
    assert capsys.readouterr().err.split("error: ")[1].startswith(f"{named} is empty; ")


def test_lists_fit_the_terminal_and_lose_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = "what it computes, in words " * 6
    lines = hanging([("name", text), ("other", "short")], 5, indent="  ")
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == f"name {text}other short"
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, overview().splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "message"), [("xyz", "xyz is no command. There are"), ("probe", "did you mean probes? There are")]
)
def test_an_unknown_command_is_answered_in_sentences(name, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        command(name)
