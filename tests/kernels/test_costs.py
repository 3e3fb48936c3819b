"""Calibrations on disk: kept by machine and shape, nearest entry used, damage reported."""

import json

import pytest
import torch

from slms.kernels import backends, cache, costs
from slms.kernels.cpu import team

SHAPE = costs.Shape(8, 12, 3, False, "float32", "cpu", False)


def test_a_user_without_a_home(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", home)
    assert cache.cache_file() == tmp_path / "cache" / "kernels.json"
    monkeypatch.delenv("SLMS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert costs.load_table() == {}
    with pytest.raises(RuntimeError):
        costs.save_measurements(SHAPE, [])


def test_nearest_measurement_decides():
    rows = [
        {"tokens": 1, "density": 0.25, "us": {"dense": 1.0, "grouped": 2.0}},
        {"tokens": 64, "density": 0.25, "us": {"dense": 2.0, "grouped": 1.0}},
        {"tokens": 64, "density": 1.0, "us": {"dense": 1.0, "grouped": 2.0}},
    ]
    costs.save_measurements(SHAPE, rows)
    pick = lambda n, density: costs.cheapest(["dense", "grouped"], SHAPE, n, density).backend  # noqa: E731
    assert [pick(1, 0.25), pick(4, 0.25), pick(20, 0.25), pick(9999, 0.3), pick(50, 0.9)] == [
        "dense",
        "dense",
        "grouped",
        "grouped",
        "dense",
    ]


def test_other_shapes_and_thread_counts_are_kept_apart():
    costs.save_measurements(SHAPE, [{"tokens": 1, "density": 1.0, "us": {"dense": 1.0}}])
    costs.save_measurements(SHAPE._replace(d_ff=99), [{"tokens": 2, "density": 1.0, "us": {"dense": 1.0}}])
    table = json.loads(cache.cache_file().read_text())
    assert len(table) == 2
    assert all(f"{torch.get_num_threads()} threads" in key and torch.__version__ in key for key in table)


def test_a_damaged_file_is_an_error():
    cache.cache_file().parent.mkdir(parents=True)
    cache.cache_file().write_text("{")
    with pytest.raises(json.JSONDecodeError):
        costs.load_table()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_estimates_grow_with_work(dtype):
    shape = SHAPE._replace(d_model=512, d_ff=2048, n_pathways=16, dtype=dtype)
    for backend in ("dense", "grouped", "rows", "amx"):
        few, many = (costs.estimate(backend, shape, n, 0.25) for n in (64, 4096))
        assert 0 < few < many
    sparse, full = (costs.estimate("grouped", shape, 1024, density) for density in (0.25, 1.0))
    assert sparse < full / 2


def test_dense_bfloat16_is_slower_without_tile_registers(monkeypatch):
    shape = SHAPE._replace(d_model=512, d_ff=2048, dtype="bfloat16")
    times = {}
    for found in (True, False):
        monkeypatch.setattr(backends, "tile_registers", lambda found=found: found)
        times[found] = costs.estimate("dense", shape, 4096, 1.0)
    assert times[False] > 2 * times[True]


def test_estimates_share_work_among_the_threads_that_run(monkeypatch):
    shape = SHAPE._replace(d_model=1024, d_ff=4096, n_pathways=16)

    def times():
        return {name: costs.estimate(name, shape, 1024, 0.5) for name in ("dense", "grouped", "rows")}

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = times()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(team, "gnu_openmp", lambda: (object(), 1, 1))
    assert all(us < alone[name] / 4 for name, us in times().items())
    assert "GNU" not in costs.cheapest(["dense", "rows"], shape, 1024, 0.5).reason
    monkeypatch.setattr(team, "gnu_openmp", lambda: (None, 0, 0))
    assert times()["rows"] == alone["rows"] and times()["dense"] < alone["dense"] / 4
    choice = costs.cheapest(["dense", "rows"], shape, 1024, 0.5)
    assert choice.backend == "dense" and "rows and amx on one thread: no GNU OpenMP" in choice.reason
