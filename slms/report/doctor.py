"""Makes the report that `eval.py doctor` prints."""

import textwrap

from slms.measure.doctor import Environment
from slms.report.tables import text_table


def described(environment: Environment) -> str:
    """The report as text for the terminal."""
    e, cache = environment, environment.cache
    kernels = [[k.model, k.call, k.backend, k.expected] for k in e.kernels]
    newer = ", ".join(f"{p.name} {p.installed} ({p.tested})" for p in e.newer)
    lines = [
        f"slms {e.slms}",
        "",
        *(line for name, value in e.system.items() for line in _wrapped(f"{name:12}  {value}", 16)),
        *_wrapped(f"newer than tested: {newer}" if newer else ""),
        "",
        text_table(["routed MLP, 4 of 16", "call", "kernel", "expected time"], kernels, left=4),
        "",
        f"  hub    {e.hub}",
        f"  cache  {cache.directory}: {cache.block_files} sets of token blocks ({cache.bytes / 2**20:.0f} MiB), "
        f"{cache.calibrations} shapes calibrated",
        *(f"         {name}: {'cached' if held else 'not cached'}" for name, held in cache.bases.items()),
        "",
        f"looked for {e.seconds:.1f} s",
    ]
    return "\n".join(lines)


def _wrapped(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent=" " * indent)
