"""`eval.py doctor`: what is installed here and what a run would find."""

import json
import textwrap
from pathlib import Path

from slms.files import write_atomic
from slms.json_values import to_json_values
from slms.report.environment import Environment, Newer, Package, is_complete, look
from slms.report.tables import text_table


def doctor(output_dir: str = "artifacts") -> None:
    """Packages, devices, the kernels that would run, whether the hub answers and what is cached; in under 5 seconds.

    Args:
        output_dir: doctor.json goes to OUTPUT_DIR/doctor/.
    """
    environment = look()
    path = Path(output_dir) / "doctor" / "doctor.json"
    print(described(environment))
    print(f"\nwritten to {write_atomic(path, json.dumps(to_json_values(environment), indent=1) + chr(10))}")


def described(environment: Environment) -> str:
    """The report as it is printed."""
    e, cache = environment, environment.cache
    packages = text_table(
        ["package", "installed", "asked for", ""],
        [[p.name, p.installed or "–", p.wanted, _remark(p)] for p in e.packages],
        left=4,
    )
    kernels = text_table(
        ["routed MLP, 4 of 16", "call", "kernel", "expected time"],
        [[k.model, k.call, k.backend, k.expected] for k in e.kernels],
        left=4,
    )
    lines = [
        f"slms {e.slms}, Python {e.python}, {e.system}",
        "",
        packages,
        *_newer(e.newer),
        "",
        *(f"  {line}" for line in e.devices),
        "",
    ]
    lines += [kernels, "", f"  hub    {e.hub}"]
    lines.append(
        f"  cache  {cache.directory}: {cache.block_files} sets of token blocks ({cache.bytes / 2**20:.0f} MiB), "
        f"{cache.calibrations} shapes calibrated"
    )
    lines += [f"         {name}: {'cached' if held else 'not cached'}" for name, held in cache.bases.items()]
    verdict = "all that slms needs is installed" if is_complete(e) else "a package is missing or of another version"
    return "\n".join([*lines, "", f"{verdict}; looked for {e.seconds:.1f} s"])


def _newer(packages: list[Newer]) -> list[str]:
    """What the tests have not seen, named one by one."""
    if not packages:
        return []
    named = ", ".join(f"{p.name} {p.installed} ({p.tested})" for p in packages)
    return ["", *textwrap.wrap(f"newer than tested: {named}", 100, initial_indent="  ", subsequent_indent="  ")]


def _remark(package: Package) -> str:
    if package.extra is None:
        return "" if package.fits else "does not fit" if package.installed else "missing"
    return f"extra {package.extra}" + ("" if package.fits or package.installed is None else ", does not fit")
