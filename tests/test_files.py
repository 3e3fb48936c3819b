"""Files are written whole or not at all: the earlier file survives whatever happens."""

import errno
import os
import stat

import numpy as np
import pytest

from slms.files import cache_dir, replacing, write_atomic, write_npz


def test_writes_text_and_bytes_and_makes_the_directory(tmp_path):
    path = write_atomic(tmp_path / "a" / "b.txt", "é")
    assert path.read_bytes() == "é".encode()
    write_atomic(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["b.txt"]


def test_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    path = write_atomic(tmp_path / "atomic", "x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_full_disk_leaves_the_earlier_file_and_no_litter(tmp_path, monkeypatch, where):
    path = tmp_path / "r.json"
    write_atomic(path, "old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.json"]


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    write_atomic(target, "earlier")
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
