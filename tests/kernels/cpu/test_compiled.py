"""Compiled code is kept, in a separate folder for each version of the sources, and compiling is announced."""

import functools
import os
import sys
import time
from pathlib import Path

import numba
import pytest

from slms.kernels.cpu import compiled, loops

INNER = "from numba.extending import register_jitable\n@register_jitable\ndef inner():\n    return {}\n"
OUTER = "from inner import inner\ndef outer():\n    return inner()\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Imports the function of two files anew and declares it; `edit` changes the file that it does not stand in."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    monkeypatch.setattr(compiled, "folder", functools.cache(compiled.folder.__wrapped__))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "outer.py").write_text(OUTER)

    def declare(number):
        (tmp_path / "inner.py").write_text(INNER.format(number))
        for name in ("inner", "outer"):
            sys.modules.pop(name, None)
        compiled.folder.cache_clear()
        import outer

        return compiled.njit(outer.outer)

    yield declare
    for name in ("inner", "outer"):
        sys.modules.pop(name, None)


def test_a_change_of_another_file_is_seen_and_what_is_known_is_kept(package, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(compiled._announcement, "functions", set())
    monkeypatch.setattr(compiled.log, "info", lambda message, *values: said.append(message % values))
    first = package(1)
    assert first() == 1
    (line,) = said
    assert line.startswith("compiling the CPU kernels, once (a minute or more), kept in ") and str(tmp_path) in line
    changed, again = package(2), None
    assert changed() == 2
    again = package(1)
    assert again() == 1
    assert again.stats.cache_hits and not changed.stats.cache_hits
    assert len({f.stats.cache_path for f in (first, changed, again)}) == 2


def test_the_loops_lie_there_and_others_do_not():
    assert Path(loops.forward_loop.stats.cache_path).parent.name == compiled.folder().name
    assert compiled.folder().name not in str(numba.config.CACHE_DIR)


def test_where_nothing_can_be_written_nothing_is_kept(package, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(compiled.log, "warning", lambda message, *values: said.append(message % values))
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "file" / "cache"))
    for number in (1, 2):  # kept beside the sources, the second would be the first
        assert package(number)() == number
    assert len(said) == 2 and all("they cannot be kept: " in line for line in said)  # once for each `folder`
    assert not list(tmp_path.rglob("*.nbi"))
    assert compiled.c_function(lambda: None, "void()").address


def test_code_of_versions_no_longer_used_is_removed(package, tmp_path):
    old, recent, other = (tmp_path / "cache" / "compiled" / name for name in ("0" * 16, "1" * 16, "something else"))
    for place, days in ((old, 31), (recent, 29), (other, 99)):
        place.mkdir(parents=True)
        os.utime(place, times=(time.time() - days * 86400,) * 2)
    assert package(1)() == 1
    assert not old.exists() and recent.exists() and other.exists()
    os.utime(compiled.folder(), times=(0, 0))
    package(1)  # a process that only uses what is there
    assert compiled.folder().stat().st_mtime > time.time() - 3600
