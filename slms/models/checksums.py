"""SHA-256 sums of the files in a model directory.

`sha256sum -c` can check `SHA256SUMS`. The safetensors library itself notices a file of the
wrong length, but not a flipped bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

CHECKSUMS = "SHA256SUMS"


def write_checksums(directory: Path) -> None:
    """Write the sums of the weight files in a directory."""
    lines = [f"{_sha256(file)}  {file.name}\n" for file in sorted(directory.glob("*.safetensors"))]
    (directory / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_checksums(directory: Path, files: Iterable[Path]) -> None:
    """Raise ValueError if the sum of one of `files` differs from the listed one; a file not listed passes."""
    try:
        lines = (directory / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        raise ValueError(f"{directory / CHECKSUMS} is no list of checksums.") from None
    listed = {name.strip(): digest for digest, _, name in (line.partition(" ") for line in lines)}
    for file in files:
        if file.name in listed and listed[file.name] != _sha256(file):
            checkpoint = directory.parent / "checkpoints" / "last.ckpt"
            again = f" Resume from {checkpoint} to write it again." if checkpoint.exists() else ""
            raise ValueError(
                f"{file} is damaged: its SHA-256 differs from {CHECKSUMS} (delete it if you changed them).{again}"
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
