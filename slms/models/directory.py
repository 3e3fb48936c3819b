"""Checks that a model directory in Hugging Face format can be loaded, before anything is built."""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from slms.models.checksums import check_checksums
from slms.models.families import FAMILIES, dense_type

logger = logging.getLogger(__name__)

_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys by which a configuration can ask transformers for kernels from the hub: `owner/name`."""
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "attention_types")
_MOST_LAYERS = 4096


def weight_files(path: Path) -> list[Path]:
    """List a model directory's weight files, preferring safetensors to pickles; empty if one of them is missing.

    Raises ValueError if an index is malformed or names a file outside the directory.
    """
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = path / f"{stem}.{ending}.index.json"
        if index.is_file():
            weight_map = read_object(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise ValueError(f"{index} has no `weight_map` of tensor names to file names.")
            names = set(weight_map.values())
            if outside := sorted(name for name in names if name in ("", ".", "..") or set(name) & set("/\\\0")):
                raise ValueError(f"{index} names {outside[0]!r}; weights must lie in the model's own directory.")
            if all((path / name).is_file() for name in names):
                return sorted(path / name for name in names)
        elif (path / f"{stem}.{ending}").is_file():
            return [path / f"{stem}.{ending}"]
    return []


def check_directory(path: Path, weights: bool = True) -> dict[str, Any]:
    """Return a model directory's config; raise a one-line ValueError or OSError if it cannot be loaded safely."""
    if path.suffix == ".gguf" and path.is_file():
        raise ValueError(f"`{path}` is a GGUF file, no directory; `slms.load_base` and the commands open it.")
    if not path.is_dir():
        raise FileNotFoundError(f"base `{path}` is no directory.")
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} {_instead_of_a_model(path)}")
    config = read_object(path / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"{path / 'config.json'} is no model configuration: `model_type` is {kind!r}.")
    _check_sizes(path / "config.json", config)
    own_code = "auto_map" in config
    if not _is_known(kind):
        reason = "it brings its own code, which is never run" if own_code else "transformers does not know it"
        raise ValueError(f"{path / 'config.json'} has model type `{kind}`: {reason}.")
    for key in _IMPLEMENTATIONS:
        if "/" in str(config.get(key)):
            raise ValueError(
                f"{path / 'config.json'}: `{key}` is {config[key]!r}; code from the hub is never fetched or run."
            )
    if own_code:
        logger.warning("%s brings code of its own (auto_map), which is not run: transformers' %s is used", path, kind)
    if weights:
        files = weight_files(path)
        if not files:
            raise FileNotFoundError(f"{path} holds no complete weights (model.safetensors or pytorch_model.bin).")
        for file in files:
            check_complete(file)
        check_checksums(path, files)
    return config


def _instead_of_a_model(path: Path) -> str:
    """Say what a directory without config.json holds."""
    if found := sorted(path.glob("*.gguf")):
        return f"holds no config.json but {found[0].name}: name that file, `{found[0]}`."
    if (path / "adapter_config.json").is_file():
        base = read_object(path / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"holds an adapter of {base}, no model; merge it into its base with peft's `merge_and_unload`, and save "
            "that with `save_pretrained`."
        )
    return "holds no config.json; a model in Hugging Face format has one."


def _is_known(kind: str) -> bool:
    """Return whether transformers knows a model type; its own list is asked last, since it takes seconds to import."""
    if dense_type(kind) in FAMILIES:
        return True
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return kind in CONFIG_MAPPING


def _check_sizes(file: Path, content: Any, key: str = "") -> None:
    """Raise ValueError for sizes that no model has, because transformers would build such layers without end."""
    if isinstance(content, dict):
        for name, value in content.items():
            _check_sizes(file, value, name)
    elif isinstance(content, list):
        for value in content:
            _check_sizes(file, value, key)
    elif isinstance(content, int):
        most = _MOST_LAYERS if key in _LAYERS else 2**53
        if content > most:
            raise ValueError(f"{file}: `{key}` is {str(content)[:20]}; it must be at most {most:,}.")


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise a one-line ValueError if it holds none."""
    try:
        content = json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError(f"{file} is no JSON: nested too deeply.") from None
    except ValueError as error:  # the file is malformed, not UTF-8, or has a number of thousands of digits
        raise ValueError(f"{file} is no JSON: {str(error).splitlines()[0]}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object.")
    return content


def check_complete(file: Path) -> None:
    """Raise ValueError if a safetensors file has no header, or is shorter or longer than the header says."""
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError, OverflowError) as error:
        size = file.stat().st_size
        raise ValueError(f"{file} is truncated or no safetensors file ({size} bytes: {error}).") from None
