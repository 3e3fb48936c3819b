"""Locates the file of a machine's calibrations, beside which compiled code is kept."""

import os
from pathlib import Path


def cache_file() -> Path:
    """The file of calibrations: `kernels.json` in `$SLMS_CACHE`, else in `$XDG_CACHE_HOME/slms` or `~/.cache/slms`.

    Raises RuntimeError if neither is set and the user has no home, as in some containers.
    """
    if "SLMS_CACHE" in os.environ:
        return Path(os.environ["SLMS_CACHE"]) / "kernels.json"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "slms" / "kernels.json"
