"""`eval.py compare`: runs side by side."""

from pathlib import Path

from slms.report.compare import compare as compare_runs
from slms.report.compare import write_comparison


def compare(runs: list[str], output_dir: str = "artifacts") -> None:
    """Losses, savings and purity of two or more runs side by side; with the dense and static controls, the gap ratio.

    Args:
        runs: run directories, or results files.
        output_dir: compare.csv and compare.png go to OUTPUT_DIR/compare/.
    """
    comparison = compare_runs(runs)
    paths = write_comparison(comparison, Path(output_dir) / "compare")
    print(comparison.table)
    print("written to " + ", ".join(str(path) for path in paths))
