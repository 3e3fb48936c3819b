import numpy as np
import pytest

from slms.data.files import cache_dir, replacing, write_npz, write_text


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    write_text(target, "earlier")
    with pytest.raises(OSError, match="disk full"), replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert target.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [target]


def test_arrays_round_trip_into_a_new_directory(tmp_path):
    write_npz(tmp_path / "a" / "b.npz", ids=np.arange(5, dtype=np.uint16))
    with np.load(tmp_path / "a" / "b.npz") as file:
        assert file["ids"].dtype == np.uint16 and file["ids"].tolist() == [0, 1, 2, 3, 4]


def test_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x"
    monkeypatch.delenv("SLMS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "slms"
