"""What a user has who installs the wheel: builds it, installs it where slms is not, and runs README's first minute.

    python tests/wheel.py            build, install, measure, train three steps; 1 where something fails

The environment is new and holds the wheel alone; the packages that slms requires are those of the Python that runs this
script, so that nothing is downloaded. The programs run in an empty directory outside the checkout.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_LOSS = "0.8913"  # of `stories-1m`, as README.md shows it
TRAIN = [  # one routed layer, little text and no controls, which would take a minute
    "--config=routed_tinystories.yaml",
    "--trainer.max_steps=3",
    "--results.control_seeds=0",
    "--results.random_model=false",
    "--model.routing.last_layer=1",
    "--model.calibration_tokens=1024",
    "--data.block_size=128",
    "--data.train_tokens=4096",
    "--data.epoch_tokens=4096",
    "--data.val_tokens=2048",
]


def build(place: Path) -> Path:
    """Build the wheel of a copy of the checkout, because an old `build/` beside it would be packed too."""
    leave = shutil.ignore_patterns(
        ".git", "__pycache__", "build", "dist", "*.egg-info", "runs", "artifacts", ".*_cache"
    )
    shutil.copytree(ROOT, place / "source", symlinks=True, ignore=leave)
    command = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", place, place / "source"]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    (wheel,) = place.glob("slms-*.whl")
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """Install the wheel into a new environment; returns the directory of its programs."""
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    (own,) = place.glob("[Ll]ib/**/site-packages")
    (own / "packages.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    options = ["-q", "--no-deps", "--ignore-installed", "--no-index", wheel]  # an slms beside the packages is another
    subprocess.run([scripts / "python", "-m", "pip", "install", *options], check=True)
    return scripts


def main() -> int:
    """Build, install, run; say what failed."""
    with tempfile.TemporaryDirectory(prefix="slms-wheel-") as temporary:
        place = Path(temporary)
        scripts, elsewhere = install(build(place), place / "environment"), place / "elsewhere"
        elsewhere.mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"SLMS_CACHE": str(place / "cache"), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}

        def said(*command: str) -> str:
            print("$", *command, flush=True)
            program, *options = command
            done = subprocess.run(
                [scripts / program, *options],
                cwd=elsewhere,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(done.stdout, flush=True)
            return done.stdout

        wrong = []
        where = said("python", "-c", "import slms; print(slms.__file__)")
        if not Path(where.strip()).is_relative_to(place / "environment"):
            wrong.append(f"slms is not the wheel's but {where}")
        if FIRST_LOSS not in said("slms-eval", "perplexity", "stories-1m"):
            wrong.append(f"slms-eval perplexity stories-1m does not print {FIRST_LOSS}")
        if "routed_pythia70m.yaml" not in said("slms-train", "--list"):
            wrong.append("slms-train --list does not name the package's configs")
        said("slms-train", *TRAIN)
        if not list(elsewhere.glob("runs/*/*/model/model.safetensors")):
            wrong.append("slms-train leaves no model")
        said("sparsity", "--help")
    print("\n".join(wrong) or "wheel: passed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
