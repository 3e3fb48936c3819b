"""Command lines as typed, against the function they reach."""

from typing import Any

import pytest
from jsonargparse import auto_cli

from slms.commands.arguments import arranged


def suite(models: list[str], task_id: list[str] | None = None, n_tokens: int = 5, given: bool = True) -> dict[str, Any]:
    """A command."""
    return {"models": models, "task_id": task_id, "n_tokens": n_tokens, "given": given}


@pytest.mark.parametrize(
    ("typed", "reached"),
    [
        ("suite a b", {"models": ["a", "b"]}),
        ("suite a", {"models": ["a"]}),
        ("suite --models a b --n-tokens=3", {"models": ["a", "b"], "n_tokens": 3}),
        ("suite --models=a-b", {"models": ["a-b"]}),
        ('suite --models=["a-b"]', {"models": ["a-b"]}),
        ("suite --models a --task-id x y --n-tokens 7", {"models": ["a"], "task_id": ["x", "y"], "n_tokens": 7}),
        ("suite a --task-id=x-y --given=false", {"models": ["a"], "task_id": ["x-y"], "given": False}),
        ("suite a --task-id x --n-tokens 2 --task-id y", {"models": ["a"], "task_id": ["x", "y"], "n_tokens": 2}),
        ("suite a --task-id=null", {"models": ["a"], "task_id": None}),
    ],
)
def test_every_spelling_reaches_the_function(typed, reached):
    found = auto_cli({"suite": suite}, args=arranged(typed.split(), {"suite": suite}), as_positional=False)
    assert found == suite(**reached)


def test_what_is_no_command_is_left_alone():
    assert arranged(["--help"], {"suite": suite}) == ["--help"]
    assert arranged(["elsewhere", "a", "--b-c"], {"suite": suite}) == ["elsewhere", "a", "--b-c"]
    assert arranged([], {}) == []
