"""What the README promises is executed: its Python blocks here, its commands by `.ci/run`."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RUN = "pip install -c constraints.txt -e . && python train.py --config routed_tinystories.yaml"
TEST = "pip install -c constraints.txt -e '.[test]' && pytest"


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


def test_every_relative_link_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links), links


def test_every_yaml_and_command_named_exists():
    for name in re.findall(r"`(routed_\w+|dense_\w+)`", README):
        assert (ROOT / "configs" / f"{name}.yaml").exists(), name
    from slms.commands import NAMES

    for name in re.findall(r"python eval\.py (\w+)", README):
        assert name in NAMES, name
