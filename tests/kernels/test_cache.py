"""Where a machine's calibrations and compiled code are kept."""

from slms.kernels import cache


def test_cache_location(monkeypatch, tmp_path):
    assert cache.cache_file() == tmp_path / "cache" / "kernels.json"
    monkeypatch.delenv("SLMS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_file() == tmp_path / ".cache" / "slms" / "kernels.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_file() == tmp_path / "xdg" / "slms" / "kernels.json"
