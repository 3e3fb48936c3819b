"""Runs tasks of lm-eval (the language model evaluation harness) on a model that is already loaded.

lm-eval is an optional dependency (`INSTALL`, or the extra `harness`) and is imported by the functions that need it.
"""

import contextlib
import difflib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

CODE = "!function"
INSTALL = "pip install 'lm-eval[hf]'"
"""as the extra `harness` does, be slms a wheel or a checkout"""


class TaskScore(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    filter: str
    """lm-eval's name for how it took the answer from the output; `none` for log-likelihoods"""
    value: float
    stderr: float | None
    """lm-eval's standard error over documents"""
    n: int
    """number of documents"""
    shots: int
    """worked examples before each question"""


def installed() -> bool:
    """Whether lm-eval can be imported."""
    return find_spec("lm_eval") is not None


def check_tasks(directory: Path) -> None:
    """Raise ValueError if a directory of task files does not exist, or if a file in it names Python code to run."""
    if not directory.is_dir():
        raise ValueError(f"--include_path {directory}: no such directory")
    for file in sorted(directory.rglob("*.y*ml")):
        if CODE in file.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"{file}: `{CODE}` runs Python code; only tasks without it are read from --include_path")


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    include: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> list[TaskScore]:
    """Score a model on lm-eval's tasks; lm-eval computes its own metrics.

    Args:
        tasks: names of tasks or groups.
        include: a directory with more task files (YAML without code).
        shots: worked examples before each question; by default the task's own number.
        limit: how many documents of each task to use; by default all.
        batch_size: sequences in one forward pass.

    Raises:
        ValueError: lm-eval is not installed or does not know a task, or a task would run generated code.
    """
    if not installed():
        raise ValueError(f"harness needs the package lm-eval: {INSTALL}")
    if include is not None:
        check_tasks(include)
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=None if include is None else str(include))
        for task in tasks:
            if not manager.match_tasks([task]):
                near = difflib.get_close_matches(task, manager.all_tasks, n=3, cutoff=0.0)
                raise ValueError(f"--tasks {task}: lm-eval has no such task; the nearest are {', '.join(near)}")
        wrapped = HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, trust_remote_code=False
        )
        found = simple_evaluate(
            wrapped,
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
            confirm_run_unsafe_code=False,
        )
    return list(_rows(found))


def _rows(found: dict) -> Iterator[TaskScore]:
    """Yield lm-eval's `{task: {"acc,none": …, "acc_stderr,none": …}}` as rows."""
    for task, numbers in found["results"].items():
        n = (found.get("n-samples") or {}).get(task, {}).get("effective", 0)
        shots = (found.get("n-shot") or {}).get(task) or 0
        for key, value in numbers.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = numbers.get(f"{metric}_stderr,{kind}")
            yield TaskScore(
                task, metric, kind, float(value), stderr if isinstance(stderr, int | float) else None, n, shots
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's notices on stdout and in the log, but not its progress bars on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
