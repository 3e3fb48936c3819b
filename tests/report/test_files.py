"""Atomic writing: the earlier file survives whatever happens."""

import errno
import os
import stat

import pytest

from slms.report.files import write_atomic


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
