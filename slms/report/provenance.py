"""What makes a number checkable: the command, versions, hardware and configuration that it was measured with."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "numpy")


def command_line(argv: list[str] | None = None) -> str:
    """The command as one would type it: no interpreter path, no directories of this machine before the script.

    >>> command_line(["/home/me/slms/train.py", "--name", "my run"])
    "python train.py --name 'my run'"
    """
    script, *options = sys.argv if argv is None else argv
    return shlex.join(["python", Path(script).name, *options])


def versions() -> dict[str, str]:
    """Versions of slms, Python and the packages that numbers depend on."""
    import slms

    found = {"slms": slms.__version__, "python": platform.python_version()}
    return found | {package: importlib.metadata.version(package) for package in PACKAGES}


def hardware(device: torch.device | str = "cpu") -> dict[str, str]:
    """Device, processor, cores and threads as strings."""
    device = torch.device(device)
    found = {
        "device": device.type,
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gib": f"{properties.total_memory / 2**30:.0f}"}
    return found


def config_digest(path: Path | str) -> str | None:
    """`sha256:…` of a resolved configuration file; None where there is none."""
    path = Path(path)
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
