"""What several benchmarks' tests read."""

import pytest

from benchmarks.coder_data import dump
from tests.processes import make_base


@pytest.fixture(scope="session")
def coders(tmp_path_factory):
    """A small model (`base`), and a dump of its first layer (`acts`)."""
    folder = tmp_path_factory.mktemp("coders")
    make_base(folder)
    dump(str(folder / "base"), str(folder / "acts"), "residual.0", n_train=3000, n_valid=600, n_test=1400)
    return folder
