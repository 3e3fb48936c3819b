"""Model directories in Hugging Face format: whether one can be loaded, checked before anything is built."""

import json
from pathlib import Path
from typing import Any


def weight_files(path: Path) -> list[Path]:
    """A model directory's weight files, safetensors before pickled ones; empty where one is missing."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = path / f"{stem}.{ending}.index.json"
        if index.is_file():
            names = set(json.loads(index.read_text())["weight_map"].values())
            if all((path / name).is_file() for name in names):
                return sorted(path / name for name in names)
        elif (path / f"{stem}.{ending}").is_file():
            return [path / f"{stem}.{ending}"]
    return []


def check_directory(path: Path, weights: bool = True) -> dict[str, Any]:
    """The config of a model directory; raises a one-line ValueError or OSError where it cannot be loaded safely."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not path.is_dir():
        raise FileNotFoundError(f"base `{path}` is no directory.")
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} holds no config.json; a model in Hugging Face format has one.")
    try:
        config = json.loads((path / "config.json").read_text())
        kind = config["model_type"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / 'config.json'} is no model configuration in JSON: {error}.") from None
    if kind not in CONFIG_MAPPING:
        reason = (
            "it brings its own code, which is never run" if "auto_map" in config else "transformers does not know it"
        )
        raise ValueError(f"{path / 'config.json'} has model type `{kind}`: {reason}.")
    if weights:
        files = weight_files(path)
        if not files:
            raise FileNotFoundError(f"{path} holds no complete weights (model.safetensors or pytorch_model.bin).")
        for file in files:
            check_complete(file)
    return config


def check_complete(file: Path) -> None:
    """Raise ValueError where a safetensors file is shorter or longer than its header says."""
    if file.suffix != ".safetensors":
        return
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length)) if 8 + length <= size else None
        except (json.JSONDecodeError, UnicodeDecodeError):
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is truncated or no safetensors file ({size} bytes).")
    end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{file} is truncated: it has {size} bytes, its header asks for {8 + length + end}.")
