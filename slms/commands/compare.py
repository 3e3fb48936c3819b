"""`eval.py compare`: runs side by side."""

from dataclasses import astuple
from pathlib import Path

from slms.commands.subject import open_subject
from slms.files import write_atomic
from slms.measure.agreement import agreement_rows
from slms.measure.compare import compare as compare_results
from slms.measure.rows import COLUMNS
from slms.models.base import open_model
from slms.models.saved_partition import saved_partitions
from slms.report.artifacts import own_directory, write_csv
from slms.report.compare import agreement_table, compare_csv, compare_figure, compare_table, run_names
from slms.report.palette import write_figure
from slms.report.results import read_results


def compare(runs: list[str], output_dir: str = "artifacts", n_tokens: int | None = 8192, batch_size: int = 16) -> None:
    """Show losses, savings and purity of runs side by side, the gap ratio, and how alike their pathways are.

    If the models of two or more routed runs of one base are at hand, the choices of each are compared with those of the
    first: the share of tokens × neurons that both execute, minus what independent choices of equal loads give.

    Args:
        runs: two or more run directories or results files.
        output_dir: compare.csv, agreement.csv (if choices are compared), compare.png and .svg go to
            OUTPUT_DIR/compare/RUNS/, where RUNS joins the first run's name, the number of other runs and a digest of
            all results.
        n_tokens: tokens of the first routed run's text on which choices are compared; null leaves this out.
        batch_size: blocks in one forward pass of these models.
    """
    results = [read_results(path) for path in runs]
    named = list(zip(run_names(results, [Path(path) for path in runs]), results, strict=True))
    models = {name: Path(path) / "model" for (name, _), path in zip(named, runs, strict=True)}
    partitions = {name: saved_partitions(model) for name, model in models.items() if model.is_dir()}
    found = compare_results(named, partitions)
    first, *others = (name for name, _ in named)
    directory = own_directory(output_dir, "compare", first, f"and-{len(others)}-others", {"runs": named})
    table = write_atomic(directory / "compare.csv", compare_csv(found.runs))
    figure = write_figure(directory / "compare.png", compare_figure(found.runs, results))
    print(compare_table(found))
    written = [table, figure]
    if n_tokens and found.partitions:
        routed = next(name for name, partition in partitions.items() if partition)
        subject = open_subject(str(models[routed].parent), n_tokens=n_tokens)
        rows = {
            name: agreement_rows(subject.model, open_model(str(models[name].parent)).model, subject.blocks, batch_size)
            for name in found.partitions
        }
        print(agreement_table(routed, rows))
        lines = [(name, *astuple(row)) for name, of_run in rows.items() for row in of_run]
        written.append(write_csv(directory / "agreement.csv", ("run", *COLUMNS), lines))
    print(f"written to {', '.join(map(str, written))}")
