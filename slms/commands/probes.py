"""`eval.py probes`: how often a model prefers the answer to the foil."""

from collections.abc import Callable
from dataclasses import astuple
from functools import cache, partial
from pathlib import Path

from transformers import PreTrainedModel

from slms.commands.subject import open_model, short_name
from slms.data.probe_tasks import MANIFEST, Task, read_tasks
from slms.measure.journal import Journal, digest, identity
from slms.measure.probes import Margins, margins, n_forwards, probe_rows
from slms.measure.rows import COLUMNS, beside
from slms.models.base import random_twin
from slms.progress import Progress
from slms.report.artifacts import own_directory, write_csv, write_json
from slms.report.palette import write_figure
from slms.report.probes import probe_figure, probe_table
from slms.report.provenance import command_line


def probes(
    model: str,
    probe_manifest: str = str(MANIFEST),
    task_id: list[str] | None = None,
    batch_size: int = 16,
    output_dir: str = "artifacts",
) -> None:
    """Share of probe items whose answer is more probable than its foil (summed log-probability), with 95 % intervals.

    The table compares this share with chance (½), with the same architecture under random weights, and with the share
    when the prompt is left out, which shows how much the two words alone give away.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id; dense or routed.
        probe_manifest: JSON lines of tasks (docs/formats.md), or a file of minimal pairs such as BLiMP's.
        task_id: names of tasks; by default all tasks that have answers.
        batch_size: texts in one forward pass.
        output_dir: probes.csv, items.csv (every item), probes.json, probes.png and .svg go to
            OUTPUT_DIR/probes/NAME/MANIFEST/.
    """
    tasks = read_tasks(probe_manifest, task_id)
    silent = [task.task_id for task in tasks if not task.answered]
    if task_id and silent:
        raise ValueError(f"--task_id {silent[0]}: its items have no answers, so there is nothing to score")
    tasks = [task for task in tasks if task.answered]
    if not tasks:
        raise ValueError(f"--probe_manifest {probe_manifest}: no item has an answer and a foil")
    net, tokenizer = open_model(model)
    null = cache(lambda: random_twin(net))
    made_from = identity(net)
    options = {"manifest": digest({"tasks": tasks}), "batch_size": batch_size}
    directory = own_directory(output_dir, "probes", model, Path(probe_manifest).stem, made_from | options)
    journal = Journal(directory.parent / "parts", made_from)
    rows, items = [], []
    n_texts = 2 * sum(n_forwards(task.answered) for task in tasks)
    with Progress("probing", n_texts, "text") as steps:
        for task in tasks:
            about = {"items": digest({"items": task.answered}), "batch_size": batch_size}

            def score(model: Callable[[], PreTrainedModel], task: Task = task) -> Margins:
                return margins(model(), tokenizer, task.answered, batch_size, steps.update)

            measured = journal.part(task.task_id, partial(score, lambda: net), **about)
            random = journal.part(f"{task.task_id} random weights", partial(score, null), **about)
            print(f"{task.task_id}: done", flush=True)
            rows += beside(probe_rows(task, measured), probe_rows(task, random))
            items += [
                (task.task_id, *item, *both)
                for item, *both in zip(task.answered, measured.nats.tolist(), measured.blind.tolist(), strict=True)
            ]
    write_csv(directory / "items.csv", ("task_id", "prompt", "answer", "foil", "margin", "blind_margin"), items)
    write_csv(directory / "probes.csv", COLUMNS, map(astuple, rows))
    about = {"model": model, "probe_manifest": Path(probe_manifest).name, "command": command_line()}
    write_json(directory / "probes.json", about | {"domains": {t.task_id: t.domain for t in tasks}, "rows": rows})
    write_figure(directory / "probes.png", probe_figure(short_name(model), rows))
    print(probe_table(rows))
    if silent:
        print(f"  without answers, not scored: {', '.join(silent)}")
    print(f"written to {directory}")
