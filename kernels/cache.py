"""Where this package keeps what it learns of a machine: calibrations, and beside them compiled code."""

import os
from pathlib import Path


def cache_file() -> Path:
    """Where calibrations are kept: `kernels.json` in `$SLMS_CACHE`, else in `$XDG_CACHE_HOME/slms` or `~/.cache/slms`.

    Raises RuntimeError where neither is set and the user has no home, as in some containers.
    """
    if "SLMS_CACHE" in os.environ:
        return Path(os.environ["SLMS_CACHE"]) / "kernels.json"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "slms" / "kernels.json"
