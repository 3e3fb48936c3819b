"""Compares sparse autoencoders of ours with SAELens's and dictionary_learning's, trained on the same activations.

    python -m benchmarks.coders dump stories-1m acts --site residual.3
    python -m benchmarks.coders sweep acts
    python -m benchmarks.coders judge acts
    python -m benchmarks.coders table '[acts]' --csv_file rows.csv

Training, validation and test are disjoint sets of documents. Every library gets the same grid of learning rates and
the same batches; validation documents choose the rate, and three seeds at that rate are judged on the test documents.
`sweep` needs an environment that has the libraries. What is kept of a directory is described in
`benchmarks.coder_data`.
"""

import logging

from jsonargparse import auto_cli

from benchmarks.coder_data import dump
from benchmarks.coder_judge import judge, table
from benchmarks.coder_sweep import sweep
from slms.cli import Parser, one_line_errors


def main() -> None:
    """Run the command line."""
    with one_line_errors("python -m benchmarks.coders"):
        auto_cli([dump, sweep, judge, table], parser_class=Parser, description=__doc__)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the other libraries' own
    main()
