"""Fixtures that every test shares: one OpenMP thread, its own cache, and real data if there are any."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test depends on a network

import pytest
import torch

from tests.processes import Run, directory, flags, make_base

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated, so before any import of ours

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SLMS_SHARED_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    os.environ["SLMS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real models and text that are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("no real data: set SLMS_SHARED_DATA to a directory with stories260K/, text/, tokenizers/")
    return SHARED


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Where the small runs of `tests.processes` go, with the model that they start from."""
    made = tmp_path_factory.mktemp("small")
    make_base(made)
    return made


@pytest.fixture(scope="session")
def one_run(folder) -> Path:
    """The run directory of a small run of one process that nothing disturbed."""
    run = Run(folder / "one.log", flags(folder, "one"))
    assert run.join() == [0], run.said()
    return directory(folder, "one")
