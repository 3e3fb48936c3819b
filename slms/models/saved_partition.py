"""Reads from a saved routed model, without building it, which pathway each neuron belongs to. Shapes: f neurons."""

import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from slms.models.directory import read_object, weight_files
from slms.models.partition import pathway_offsets
from slms.models.place import in_order, place_name

_KEY = re.compile(r"(?:.*\.)?(\d+)\.[^.]+\.permutation")


def saved_partitions(path: Path) -> dict[str, Tensor]:
    """By place, the pathway of each neuron in the dense model's order, int64 [f]; empty for a model that is not routed.

    Raises ValueError or OSError, one line, if the directory holds no readable model.
    """
    routing = read_object(path / "config.json").get("routing")
    if not isinstance(routing, dict):
        return {}
    found: dict[str, Tensor] = {}
    for file in weight_files(path):
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                if match := _KEY.fullmatch(key):
                    found[place_name(int(match[1]))] = _pathway_of(tensors.get_tensor(key), routing["n_pathways"])
    return {place: found[place] for place in in_order(found)}


def _pathway_of(permutation: Tensor, n_pathways: int) -> Tensor:
    sizes = torch.tensor(pathway_offsets(len(permutation), n_pathways)).diff()
    return torch.arange(n_pathways).repeat_interleave(sizes)[permutation.argsort()]
