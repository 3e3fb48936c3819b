"""Command lines reach the function with the arguments that were typed."""

import inspect
import re
from typing import Any, Literal, get_args, get_origin

import pytest
from jsonargparse import auto_cli

import eval as evaluation
from slms.commands import NAMES, command
from slms.commands.arguments import LEAST, command_lines, published


@published(dataset="corpus")
def suite(
    models: list[str], task_id: list[str] | None = None, n_tokens: int = 5, given: bool = True, corpus: str = "stories"
) -> dict[str, Any]:
    """A command on several models at once."""
    return {"models": models, "task_id": task_id, "n_tokens": n_tokens, "given": given, "corpus": corpus}


def perplexity(model: str = "stories-1m", layers: list[str] | None = None, **text) -> dict[str, Any]:
    """A command on one model."""
    return {"model": model, "layers": layers, **opened(**text)}


def opened(n_tokens: int = 5) -> dict[str, Any]:
    """What the command hands its other options to."""
    return {"n_tokens": n_tokens}


def reached(function, typed: str) -> list[dict[str, Any]]:
    return [auto_cli(function, args=line, as_positional=False) for line in command_lines(typed.split(), function)]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("a b", {"models": ["a", "b"]}),
        ("a", {"models": ["a"]}),
        ("a,b c", {"models": ["a", "b", "c"]}),
        ("--models a b --n-tokens=3", {"models": ["a", "b"], "n_tokens": 3}),
        ("--models=a-b", {"models": ["a-b"]}),
        ('--models=["a-b"]', {"models": ["a-b"]}),
        ("--models a --task-id x y --n-tokens 7", {"models": ["a"], "task_id": ["x", "y"], "n_tokens": 7}),
        ("--models a --task_id x,y, z", {"models": ["a"], "task_id": ["x", "y", "z"]}),
        ("a --task-id=x-y --given=false", {"models": ["a"], "task_id": ["x-y"], "given": False}),
        ("a --task-id x --n-tokens 2 --task-id=y,z", {"models": ["a"], "task_id": ["x", "y", "z"], "n_tokens": 2}),
        ("a --task-id=null", {"models": ["a"], "task_id": None}),
        ("a --dataset x.txt", {"models": ["a"], "corpus": "x.txt"}),
        ("a --dataset=x.txt", {"models": ["a"], "corpus": "x.txt"}),
    ],
)
def test_every_spelling_reaches_the_function(typed, found):
    assert reached(suite, typed) == [suite(**found)]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("", [{}]),
        ("a", [{"model": "a"}]),
        ("--model a --n_tokens 3", [{"model": "a", "n_tokens": 3}]),
        ("runs/a runs/b --n-tokens=3", [{"model": "runs/a", "n_tokens": 3}, {"model": "runs/b", "n_tokens": 3}]),
        ("a b --layers 1 2", [{"model": "a", "layers": ["1", "2"]}, {"model": "b", "layers": ["1", "2"]}]),
    ],
)
def test_each_subject_is_measured_by_itself(typed, found):
    assert reached(perplexity, typed) == [perplexity(**one) for one in found]


def test_a_file_whose_name_has_a_comma_is_one_item(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert reached(suite, "a,b c,d") == [suite(models=["a,b", "c", "d"])]


NUMBERS = [
    (name, option)
    for name in NAMES
    for option, parameter in inspect.signature(command(name)).parameters.items()
    if re.match("(int|float)( |$)", inspect.formatannotation(parameter.annotation))
    and option not in ("seed", "num_docs", "density")  # which may be anything, −1, or need a rule beside them
]


def required(name: str) -> list[str]:
    """What a command takes beside its subject, with any value that is allowed."""
    _, *more = inspect.signature(command(name)).parameters.values()
    needed = [p for p in more if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return [f"--{p.name}={get_args(p.annotation)[0] if get_origin(p.annotation) is Literal else 'x'}" for p in needed]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_no_number_is_too_small_for_its_option(name, option, tmp_path, monkeypatch, capsys):
    """Whatever command: refused in one line that names option, value and rule, before a model is opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slms.models.base.read_model", None)
    value = LEAST.get(option, 0) - 1
    with pytest.raises(SystemExit) as stop:
        evaluation.main([name, "stories-1m", *required(name), f"--{option}={value}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and f"--{option} {value}" in line and "must be" in line
    assert not list(tmp_path.iterdir())
