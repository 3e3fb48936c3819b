"""The main job and the tests that reach furthest into other libraries, on the oldest and the newest packages allowed.

    python tests/versions.py lowest         the lower bound of every range in pyproject.toml
    python tests/versions.py newest         whatever is newest within the ranges today
    python tests/versions.py constraints    the set that constraints.txt names

Each makes a fresh virtual environment in a temporary directory, with the Python that runs this script or that
`--python` names, and removes it afterwards. A plain torch brings CUDA on Linux, some
5 GB; `--torch=tested` takes the version of constraints.txt.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/models", "tests/lit"]
JOB = [
    "--data.train_tokens=65536",
    "--data.epoch_tokens=32768",
    "--data.val_tokens=32768",
    "--trainer.max_epochs=2",
]
"""Of the README's first command, half a minute."""


def requirements() -> list[str]:
    """What slms and its tests need, as in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def constraints() -> list[str]:
    """The lines of constraints.txt: `NAME==VERSION`, some with a marker."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def lowest(requirement: str) -> str:
    """A requirement narrowed to its lower bound, as a constraint, which cannot name extras.

    >>> lowest("lightning>=2.6,!=2.6.2,<3")
    'lightning==2.6'
    >>> lowest('jsonargparse[signatures]>=4.40,<5; sys_platform == "linux"')
    'jsonargparse==4.40; sys_platform == "linux"'
    """
    name, _, bound, marker = re.fullmatch(r"([\w.-]+)(\[.*\])?>=([\w.]+)[^;]*(;.*)?", requirement).groups()
    return f"{name}=={bound}{marker or ''}"


def pins(which: str, torch: str | None) -> list[str]:
    """The constraints that an installation of `which` is held to, where `torch` is given with that version of it."""
    held = {"lowest": [lowest(line) for line in requirements()], "newest": [], "constraints": constraints()}[which]
    if torch is None:
        return held
    (tested,) = [pin for pin in constraints() if pin.startswith("torch==")]
    return [pin for pin in held if not pin.startswith("torch==")] + [tested if torch == "tested" else f"torch=={torch}"]


def pythons() -> dict[str, str]:
    """Version → interpreter, of each version that pyproject.toml states and this machine has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    managed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {v: shutil.which(f"python{v}") for v in stated}  # pyenv's shims fail for versions that are not chosen
    found |= {v: str(path) for v in stated for path in sorted(managed.glob(f"{v}.*/bin/python"))}
    return {v: path for v, path in found.items() if path and "shims" not in path}


def main() -> int:
    """Install, say what was installed, run; 1 where the job or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["lowest", "newest", "constraints"])
    parser.add_argument("--torch", metavar="VERSION", help="this version of torch, or `tested`")
    parser.add_argument("--python", default=sys.executable, help="the interpreter; found here: " + ", ".join(pythons()))
    parser.add_argument("--job-only", action="store_true", help="leave the tests out")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="slms-versions-") as temporary:
        place = Path(temporary)
        (place / "pins.txt").write_text("\n".join(pins(options.which, options.torch)), encoding="utf-8")
        run(options.python, "-m", "venv", place / "venv")
        python = place / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        extra = "" if options.job_only else "[test]"
        run(python, "-m", "pip", "install", "-q", "-c", place / "pins.txt", "-e", f"{ROOT}{extra}")
        run(python, "-m", "pip", "list", "--format=freeze")
        environment = os.environ | {"SLMS_CACHE": str(place / "cache"), "MPLBACKEND": "Agg"}
        command = [python, "train.py", "--config", "routed_tinystories.yaml", f"--output_dir={place / 'runs'}", *JOB]
        failed = run(*command, environment=environment, check=False)
        if not options.job_only:
            failed |= run(
                python, "-m", "pytest", "-p", "no:cacheprovider", *TESTS, environment=environment, check=False
            )
    print(f"{options.which}: {'failed' if failed else 'passed'}")
    return int(failed)


def run(*command: str | Path, environment: dict[str, str] | None = None, check: bool = True) -> bool:
    """Run a command in the checkout, shown first; whether it failed, which with `check` ends everything."""
    print("$", *command, flush=True)
    return bool(subprocess.run(command, cwd=ROOT, env=environment, check=check).returncode)


if __name__ == "__main__":
    sys.exit(main())
