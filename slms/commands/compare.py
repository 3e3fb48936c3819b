"""`eval.py compare`: runs side by side."""

from pathlib import Path

from slms.files import write_atomic
from slms.measure.compare import compare as compare_results
from slms.models.saved_partition import saved_partitions
from slms.report.artifacts import own_directory
from slms.report.compare import compare_csv, compare_figure, compare_table, run_names
from slms.report.palette import write_figure
from slms.report.results import read_results


def compare(runs: list[str], output_dir: str = "artifacts") -> None:
    """Show losses, savings and purity of runs side by side, the gap ratio, and how alike their pathways are.

    Args:
        runs: two or more run directories or results files.
        output_dir: compare.csv, compare.png and .svg go to OUTPUT_DIR/compare/RUNS/, where RUNS joins the first run's
            name, the number of other runs and a digest of all results.
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
    print(f"written to {table}, {figure}")
