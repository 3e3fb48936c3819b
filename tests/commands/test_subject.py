"""A command has the right defaults for the text that it measures."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import eval as evaluation
import slms.commands
from slms.commands.subject import chosen_text, open_subject, public_name
from slms.data.corpora import CorpusConfig
from slms.models.base import BaseConfig, init_base, load_base
from slms.models.io import save_model


def test_blocks_are_no_longer_than_the_context_unless_asked_for(tmp_path):
    base = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    base.model.config.max_position_embeddings = 32
    base.model.transformer.wpe.weight.data = base.model.transformer.wpe.weight.data[:32]
    save_model(base.model, base.tokenizer, tmp_path)
    assert open_subject(str(tmp_path), n_tokens=512).blocks.input_ids.shape == (16, 32)
    with pytest.raises(ValueError, match=r"--block_size 64: .* at most 32"):
        open_subject(str(tmp_path), n_tokens=512, block_size=64)


def test_the_public_name_of_a_model_is_no_path(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "mine" / "20260101"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    for path in (run, run / "model", "runs/mine/20260101", "runs/mine/20260101/model", tmp_path / "gone" / "mine"):
        assert public_name(str(path)) == "mine"
    for name in ("stories-1m", "roneneldan/TinyStories-1M"):
        assert public_name(name) == name


RUN = {"corpus": "mine.jsonl", "validation": "dev.jsonl", "text_field": "story", "block_size": 128, "n_tokens": 4096}


@pytest.mark.parametrize(
    ("own", "asked", "chosen"),
    [
        ({}, {}, ("stories", None, "validation", "text", 256, 131_072)),
        (RUN, {}, ("mine.jsonl", "dev.jsonl", "validation", "story", 128, 4096)),
        (RUN, {"split": "train", "n_tokens": 10}, ("mine.jsonl", "dev.jsonl", "train", "story", 128, 10)),
        (RUN, {"corpus": "other.txt"}, ("other.txt", None, "validation", "text", 128, 4096)),
        (RUN, {"validation": "other.txt"}, ("mine.jsonl", "other.txt", "validation", "story", 128, 4096)),
        ({"corpus": "mine.jsonl"}, {"block_size": 32}, ("mine.jsonl", None, "validation", "text", 32, 131_072)),
    ],
)
def test_what_was_asked_for_goes_before_the_runs_text_and_that_before_the_defaults(own, asked, chosen):
    model = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    keys = ("corpus", "validation", "split", "text_field", "block_size", "n_tokens")
    found = chosen_text(model, own, **asked)
    assert found == dict(zip(keys, chosen, strict=True)) | {
        key: str(Path.cwd() / found[key]) for key in ("corpus", "validation") if found[key] not in (None, "stories")
    }  # names of files are absolute


@pytest.mark.parametrize("flag", ["block_size", "n_tokens"])
def test_no_text_is_refused(flag):
    model = init_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    with pytest.raises(ValueError, match=f"--{flag} 0: it must be at least"):
        chosen_text(model, {}, **{flag: 0})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that validated on valid.txt, a file of the directory in which it was trained, as train.py records it."""
    home = tmp_path_factory.mktemp("home")
    base = load_base(BaseConfig(name="stories-1m", init="random", d_model=8, n_layers=1, n_heads=2))
    save_model(base.model, base.tokenizer, home / "run" / "model")
    return home


@pytest.fixture
def run(finished, monkeypatch):
    monkeypatch.chdir(finished)
    for name in ("train.txt", "valid.txt"):
        (finished / name).write_text("\n\n".join(f"{name[:5]} {i} was a good dog." for i in range(200)))
    corpus = CorpusConfig(name="train.txt", validation="valid.txt").recorded()
    data = {"corpus": asdict(corpus), "block_size": 32, "val_tokens": 512}
    (finished / "run" / "config.yaml").write_text(
        yaml.safe_dump({"model": {"base": {"source": "local"}}, "data": data})
    )
    return finished / "run"


def test_a_run_is_measured_on_its_own_text_from_any_directory(run, tmp_path, monkeypatch):
    here = open_subject(str(run))
    (tmp_path / "valid.txt").write_text("\n\n".join("other text" for _ in range(900)))
    monkeypatch.chdir(tmp_path)
    there = open_subject(str(run))
    assert (there.blocks.input_ids == here.blocks.input_ids).all()
    assert there.source == here.source == there.text["validation"] == str(run.parent / "valid.txt")
    assert open_subject(str(run), split="train").source == str(run.parent / "train.txt")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda path: path.unlink(), r"valid\.txt: no such file; the run read"),
        (
            lambda path: path.write_text(path.read_text().replace("good", "bad")),
            r"valid\.txt: its text has changed since",
        ),
    ],
)
def test_a_run_whose_text_is_gone_or_changed_is_measured_on_no_other(run, fault, message):
    fault(run.parent / "valid.txt")
    with pytest.raises(ValueError, match=message):
        open_subject(str(run))
    asked = str(run.parent / "train.txt")
    assert open_subject(str(run), corpus=asked).source == f"{asked} (every 50th document)"
    (run.parent / "valid.txt").write_text("\n\n".join("text that was asked for" for _ in range(300)))
    assert open_subject(str(run), validation="valid.txt").source.endswith("valid.txt")


@pytest.mark.parametrize("command", ["layers", "perplexity"])
def test_models_of_one_name_do_not_share_results(command, tmp_path):
    words = [] if command == "layers" else ["--n_tokens=64", "--block_size=32"]
    for width in (8, 16):
        base = load_base(BaseConfig(name="stories-1m", init="random", d_model=width, n_layers=1, n_heads=2))
        save_model(base.model, base.tokenizer, tmp_path / str(width) / "m")
        evaluation.main([command, str(tmp_path / str(width) / "m"), *words, f"--output_dir={tmp_path / 'out'}"])
    assert len(list((tmp_path / "out" / command / "m").glob(f"*/{command}.json"))) == 2


@pytest.mark.parametrize("path", sorted(Path(slms.commands.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_command_writes_to_a_directory_of_its_own(path):
    """By `own_directory`, which knows model, text and settings; `doctor` measures the machine."""
    source = path.read_text()
    assert "artifact_directory" not in source and ("Path(output_dir)" not in source or path.stem == "doctor")
