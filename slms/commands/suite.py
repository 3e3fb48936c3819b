"""`eval.py suite`: specialization across models of several sizes."""

import json
from functools import partial
from pathlib import Path

from slms.commands.subject import open_subject, short_name
from slms.data.corpora import CorpusConfig
from slms.measure.journal import Journal
from slms.measure.suite import SuiteModel, measure_model, verdicts
from slms.progress import progress
from slms.report.artifacts import own_directory, write_csv, write_json
from slms.report.palette import write_figure
from slms.report.provenance import command_line, hardware, versions
from slms.report.suite import SUITE_COLUMNS, suite_figure, suite_rows, suite_table

PYTHIA = tuple(f"EleutherAI/pythia-{size}-deduped" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b"))
STORIES, WIDTHS = "dense_stories_scale", (16, 48, 80, 160)  # a config, and what its runs differ in


def suite(
    models: list[str] | None = None,
    suite: str | None = None,
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

    The verdict (rises, falls, no trend) follows a rule that was fixed before anything was measured
    (slms/measure/suite.py). Each model's numbers are kept as soon as it is measured; a stopped suite continues there.

    Args:
        models: run directories, model directories, `stories-1m` or Hugging Face ids; or give `suite` instead.
        suite: pythia (70m to 2.8b, deduped, from the hub), or stories (the last finished run of
            dense_stories_scale.yaml at each of four widths).
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
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--models {' '.join(names)}: give at least one model, each once")
    read = {"corpus": corpus, "block_size": block_size, "n_tokens": n_tokens, **text}
    files = CorpusConfig(corpus, text.get("validation")).recorded().files
    options = read | {"n_nulls": n_nulls, "files": files}
    weights = {name: _written(name) for name in names}
    directory = own_directory(output_dir, "suite", suite or "models", Path(corpus).stem, options | {"models": weights})
    journal = Journal(directory.parents[1] / "measured", options)  # whatever suite a model is part of
    measured = []
    for name in progress(names, "models"):
        made = journal.part(
            name, partial(_measure, name, batch_size, n_nulls, **read), model=name, weights=weights[name]
        )
        measured.append(made)
    measured.sort(key=lambda model: model.parameters)
    found = verdicts(measured)
    write_csv(directory / "suite.csv", SUITE_COLUMNS, suite_rows(measured))
    about = {**read, "n_nulls": n_nulls, "models": names, "command": command_line()}
    about |= {"versions": versions(), "hardware": hardware(), "verdicts": [verdict._asdict() for verdict in found]}
    write_json(directory / "suite.json", about)
    write_figure(directory / "suite.png", suite_figure(suite or "", measured, found))
    print(suite_table(measured, found))
    print(f"written to {directory}")


def _measure(name: str, batch_size: int, n_nulls: int, **text) -> SuiteModel:
    subject = open_subject(name, **text)
    return measure_model(short_name(name), subject.model, subject.blocks, batch_size, n_nulls)


def _written(name: str) -> list[int]:
    """When a local model's weights were written, so that a retrained model does not get the old one's numbers."""
    return sorted(path.stat().st_mtime_ns for path in Path(name).glob("**/model*.safetensors"))


def stories_runs(runs: str) -> list[str]:
    """Find the last finished run of the stories suite at each of its widths."""
    finished = sorted((Path(runs) / STORIES).glob("*/model/config.json"))
    found = {json.loads(path.read_text(encoding="utf-8"))["hidden_size"]: str(path.parents[1]) for path in finished}
    for width in WIDTHS:
        if width not in found:
            flags = f"--model.base.d_model={width} --model.base.n_heads={width // 4}"
            raise ValueError(
                f"--runs {runs}: no finished run; python train.py --config {STORIES}.yaml {flags} makes one"
            )
    return [found[width] for width in WIDTHS]
