"""What the README promises is executed: its Python blocks here, its commands by `.ci/run`."""

import re
import shlex
from pathlib import Path

import pytest

import eval as evaluation
from slms.commands import NAMES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RUN = "pip install -c constraints.txt -e . && python train.py --config routed_tinystories.yaml"
TEST = "pip install -c constraints.txt -e '.[test]' && pytest -n 2 --dist loadfile"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    assert len(blocks("python")) == 2
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("Once upon a time")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert names["slms"].list_layers("stories-1m")[0].d_ff == 256


def test_the_two_commands_stand_in_the_readme_and_in_ci():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in (RUN, TEST):
        assert command in README
        for part in command.split(" && "):
            assert part.replace("pip install", "pip install -q") in ci or part in ci, part


PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert all((page.parent / link).exists() for link in links), links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_row_of_a_table_has_its_columns(page):
    """A row with another number of cells is drawn with its numbers under the wrong titles."""
    columns = 0
    for line in page.read_text().splitlines():
        cells = line.replace(r"\|", "").count("|") if line.startswith("|") else 0
        assert not (columns and cells) or cells == columns, line
        columns = cells


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_bytes()) <= 9 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_yaml_command_and_option_named_exists(page, capsys):
    text = page.read_text()
    for name in re.findall(r"\b((?:routed|dense|sae|crosscoder)_[\w.]+)\.yaml", text):
        assert (ROOT / "configs" / f"{name}.yaml").exists(), name
    for line in re.findall(r"^python eval\.py (.*)$", text, flags=re.M):
        command, *words = shlex.split(line, comments=True)
        assert command in NAMES, command
        passed = ("--trainer.", "--model.", "--data.", "--results.") if command == "study" else ()  # on to train.py
        words = [word for word in words if not word.startswith(passed)]
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option.replace("-", "_") in options_of(command, capsys), line


def options_of(command: str, capsys, known: dict[str, set[str]] = {}) -> set[str]:  # noqa: B006  asked once each
    """The options that `eval.py COMMAND --help` lists, dashes as underscores."""
    if command not in known:
        with pytest.raises(SystemExit):
            evaluation.main([command, "--help"])
        known[command] = {option.replace("-", "_") for option in re.findall(r"--[\w-]+", capsys.readouterr().out)}
    return known[command]
