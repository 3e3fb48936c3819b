"""Records what makes a number checkable: the command, versions, hardware and configuration that gave it."""

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
    """The command as you would type it, without the interpreter's path or this machine's directories before the script.

    >>> command_line(["/home/me/slms/train.py", "--name", "my run"])
    "python train.py --name 'my run'"
    >>> command_line(["/home/me/bin/slms-train", "--name=x"])
    'slms-train --name=x'
    """
    script, *options = sys.argv if argv is None else argv
    name = Path(script).name
    return shlex.join([*(["python"] if name.endswith(".py") else []), name, *options])


def versions() -> dict[str, str]:
    """The versions of slms, Python and the packages on which numbers depend."""
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
    """`sha256:…` of a resolved configuration file; None if the file does not exist."""
    path = Path(path)
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
