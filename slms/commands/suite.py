"""`eval.py suite`: specialization across models of several sizes."""

import json
from functools import partial
from itertools import combinations
from pathlib import Path

from slms.commands.subject import Subject, open_subject, short_name, with_text
from slms.data.corpora import CorpusConfig
from slms.lit.parser import read_yaml
from slms.lit.run_directory import CONFIG_FILE, run_of
from slms.lit.trained import model_at, tokens_at
from slms.measure.journal import Journal
from slms.measure.rows import Row
from slms.measure.suite import SuiteModel, describe, measure_numbers, verdicts
from slms.models.base import random_twin
from slms.progress import progress
from slms.report.artifacts import own_directory, write_csv, write_json
from slms.report.palette import write_figure
from slms.report.provenance import command_line, hardware, versions
from slms.report.suite import SUITE_COLUMNS, suite_figure, suite_rows, suite_table

PYTHIA = tuple(f"EleutherAI/pythia-{size}-deduped" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b"))
STORIES, WIDTHS, SEEDS = "dense_stories_scale", (16, 32, 48, 64, 96, 160), (0, 1, 2)
"""A config, and what its runs differ in."""
CHECKPOINTS = (500_000, 1_000_000, 2_000_000, 4_000_000)
"""The tokens after which each run is measured, to 1 %."""


def suite(
    models: list[str] | None = None,
    suite: str | None = None,
    beside: list[str] | None = None,
    runs: str = "runs",
    corpus: str = "stories",
    block_size: int = 256,
    n_tokens: int = 32_768,
    n_nulls: int = 10,
    batch_size: int = 16,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """AS, SI and Q of models of several sizes against their parameters: slopes with 95 % intervals and a verdict.

    The verdict (rises, falls, no trend) follows a rule that was fixed before the suite was measured
    (slms/measure/suite.py). Each model's numbers are kept as soon as it is measured; a stopped suite continues there.

    Args:
        models: run directories, checkpoints of dense runs, model directories, `stories-1m` or Hugging Face ids; or
            give `suite` instead. Several checkpoints of a run tell size and loss apart.
        suite: pythia (70m to 2.8b, deduped, from the hub), or stories (the finished runs of dense_stories_scale.yaml
            at six widths with three seeds, each at four checkpoints).
        beside: models that are measured and shown beside the suite, and take no part in its slopes.
        runs: the directory that holds the runs of the stories suite, the `--output_dir` of train.py.
        corpus: `stories`, a .txt/.jsonl/.parquet file or a dataset id; the same for all models.
        block_size: context in tokens.
        n_tokens: tokens to measure on.
        n_nulls: how many token-shuffled graphs form the null of Q.
        batch_size: blocks in one forward pass.
        output_dir: suite.csv, suite.json, suite.png and .svg go to OUTPUT_DIR/suite/NAME/TEXT/, each model's
            numbers to OUTPUT_DIR/suite/measured/.
    """
    if (models is None) == (suite is None):
        raise ValueError("give either --models or --suite")
    if suite not in (None, "pythia", "stories"):
        raise ValueError(f"--suite {suite}: it must be pythia or stories; other models are given as --models")
    names = list(models or ()) if suite is None else list(PYTHIA) if suite == "pythia" else stories_runs(runs)
    aside = list(beside or ())
    if not names or len({*names, *aside}) < len(names + aside):
        raise ValueError(f"--models {' '.join(names + aside)}: give at least one model, each once")
    read = {"corpus": corpus, "block_size": block_size, "n_tokens": n_tokens, **text}
    files = CorpusConfig(corpus, text.get("validation")).recorded().files
    options = read | {"n_nulls": n_nulls, "files": files}
    weights = {name: _written(name) for name in names + aside}
    directory = own_directory(output_dir, "suite", suite or "models", Path(corpus).stem, options | {"models": weights})
    journal = Journal(directory.parents[1] / "measured", options)  # whatever suite a model is part of
    measured = {}
    for name in progress(names + aside, "models"):
        measure = partial(_measure, journal, name, batch_size, n_nulls, **read)
        measured[name] = journal.part(name, measure, model=name, weights=weights[name])
    shown = sorted((measured[name] for name in names), key=lambda model: (model.parameters, model.run, -model.nats))
    for one, other in combinations(shown, 2):
        if (one.parameters, one.nats) == (other.parameters, other.nats):
            raise ValueError(
                f"{one.model} and {other.model} are the same model; runs of a size need seeds of their own"
            )
    others, found = [measured[name] for name in aside], verdicts(shown)
    write_csv(directory / "suite.csv", SUITE_COLUMNS, suite_rows(shown + others))
    about = {**read, "n_nulls": n_nulls, "models": names, "beside": aside, "command": command_line()}
    about |= {"versions": versions(), "hardware": hardware(), "verdicts": [verdict._asdict() for verdict in found]}
    write_json(directory / "suite.json", about)
    write_figure(directory / "suite.png", suite_figure(suite or "", shown, others, found))
    print(suite_table(shown, others, found))
    print(f"written to {directory}")


def _measure(journal: Journal, name: str, batch_size: int, n_nulls: int, **text) -> SuiteModel:
    """Measure a model, and its random weights unless those of its run have been measured with another checkpoint."""
    subject, run, seed = _open(name, text)
    called = subject.name
    numbers = measure_numbers(f"{called}, trained", subject.model, subject.blocks, batch_size, n_nulls)

    def measure_random() -> dict[str, Row]:
        twin = random_twin(subject.model, seed)
        return measure_numbers(f"{called.split(', ')[0]}, random weights", twin, subject.blocks, batch_size, n_nulls)

    shape = {key: value for key, value in subject.model.config.to_dict().items() if not key.startswith("_")}
    random = journal.part(f"random {run}", measure_random, shape=shape, seed=seed)
    return describe(called, run, subject.model, subject.blocks, batch_size, numbers, random)


def _open(name: str, text: dict) -> tuple[Subject, str, int]:
    """The subject, its run's name and seed; a model by itself is its own run."""
    if not name.endswith(".ckpt"):
        called = short_name(name)
        return open_subject(name, **text)._replace(name=called), called, 0
    trained = model_at(Path(name))
    place = run_of(Path(name))
    run = str(place or name)
    called = f"{trained.config['name']}, {trained.tokens / 1e6:.1f} M" if place else Path(name).name
    return with_text(called, trained.base, {}, **text), run, trained.config["model"]["base"]["seed"]


def _written(name: str) -> list[int]:
    """When a local model's weights were written, so that a retrained model does not get the old one's numbers."""
    files = [Path(name)] if name.endswith(".ckpt") else sorted(Path(name).glob("**/model*.safetensors"))
    return [path.stat().st_mtime_ns for path in files if path.is_file()]


def stories_runs(runs: str) -> list[str]:
    """Find the checkpoints of the stories suite: of the last finished run of each width and seed, at `CHECKPOINTS`.

    Raises:
        ValueError: a run or one of its checkpoints is missing; the message has the command that makes it.
    """
    finished: dict[tuple[int, int], Path] = {}
    for path in sorted((Path(runs) / STORIES).glob("*/model/config.json")):
        try:
            width = json.loads(path.read_text(encoding="utf-8"))["hidden_size"]
            config = read_yaml(path.parents[1] / CONFIG_FILE)
            seeds = {config["model"]["base"]["seed"], config["data"]["seed"]}
            if len(seeds) == 1:  # weights and text both differ between seeds
                finished[width, seeds.pop()] = path.parents[1]
        except (KeyError, TypeError, ValueError):  # not the files of a run
            continue
    found = []
    for seed in SEEDS:
        for width in WIDTHS:
            flags = f"--seed_everything={seed} --model.base.d_model={width}"
            flags += f" --model.base.n_heads={width // 4}"
            made_by = f"python train.py --config {STORIES}.yaml {flags} makes"
            if (width, seed) not in finished:
                raise ValueError(f"--runs {runs}: no finished run of width {width}, seed {seed}; {made_by} one")
            run = finished[width, seed]
            tokens = {path: tokens_at(path) for path in (run / "checkpoints").glob("epoch=*.ckpt")}
            for wanted in CHECKPOINTS:
                near = [path for path, n in tokens.items() if abs(n - wanted) <= wanted / 100]
                if not near:
                    raise ValueError(f"--runs {runs}: {run} has no checkpoint at {wanted:,} tokens; {made_by} a run")
                found.append(str(near[0]))
    return found
