"""Reads coders: SAELens's directories and ours, a run's, or several at once.

Shapes: d model (input i, output o), s latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slms.models.directory import read_object
from slms.sae.base import Coder
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import ARCHITECTURES, CONFIG, WEIGHTS


def load_coder(path: str | Path) -> Coder:
    """Read one coder, ready for inference: `encode`, `decode` and `forward` take the model's unscaled activations.

    Args:
        path: a SAELens directory (`cfg.json`, `sae_weights.safetensors`), or a run or directory that holds just one.

    Returns:
        The coder; its `metadata` says which model, site and text it comes from.

    Raises:
        ValueError: there is no coder, there are several, or one is damaged or of an unknown kind.
    """
    found = coder_directories(Path(path))
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ValueError(f"{path}: holds {len(found)} coders ({names}); name one's directory, or use load_many")
    return load(found[0])


def load_many(paths: str | Path | Iterable[str | Path]) -> dict[str, Coder]:
    """Read every coder of some runs or directories.

    Returns:
        The coders by the names of their directories, or by their paths if two share a name.

    Raises:
        ValueError: a path holds no coder, or a coder is damaged or of an unknown kind.
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    found = list(dict.fromkeys(one for path in given for one in coder_directories(Path(path))))
    names = [one.name for one in found]
    return {name if names.count(name) == 1 else str(one): load(one) for name, one in zip(names, found, strict=True)}


def coder_directories(directory: Path) -> list[Path]:
    """List the SAELens directories of a run, or of a directory that holds some; a SAELens directory is its own.

    Raises:
        ValueError: there is none.
    """
    if (directory / CONFIG).exists():
        return [directory]
    if (directory / "config.yaml").exists():
        if found := sorted(path.parent for path in (directory / "saes").glob(f"*/{CONFIG}")):
            return found
        raise ValueError(f"{directory}: a run without saes/; train one with `--config sae_tinystories.yaml`")
    if found := sorted(path.parent for path in directory.glob(f"*/{CONFIG}")):
        return found
    raise ValueError(f"{directory / CONFIG}: no such file; an SAE directory holds {CONFIG} and {WEIGHTS}")


def load(directory: Path) -> Coder:
    """Read a SAELens directory; the coder's `metadata` is what `cfg.json` says of its origin.

    If a `topk` coder rescales its pre-activations by the decoder's norms, they stay apart, so that it computes what
    SAELens does to the last bit; `fold_scale(coder, 1.0)` folds them in.

    Raises:
        ValueError: a file, key or tensor is missing or damaged, or an option is not supported; the message is one line
            that names it.
    """
    config = _read_config(directory / CONFIG)
    name = config["architecture"]
    kind, names = ARCHITECTURES[name]
    tensors = _read_tensors(directory / WEIGHTS, names, config)
    transcoder = name.endswith("transcoder") or not config.get("apply_b_dec_to_input", True)
    s = config["d_sae"]
    made = CoderConfig(kind=kind, d_sae=s, k=config["k"] if kind == "topk" else min(32, s), skip="W_skip" in names)
    coder = build_coder(made, config["d_in"], tensors["W_dec"].shape[1] if transcoder else None)
    if name.endswith("crosscoder"):
        coder.n_sources, coder.source_scales = config["n_sources"], tensors["source_scales"]
    coder.unit_norm = not (kind == "topk" and config.get("rescale_acts_by_decoder_norm"))
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    coder.to(tensors["W_enc"].dtype).load_state_dict(tensors)
    coder.metadata = config.get("metadata") or {}
    return coder.eval().requires_grad_(False)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_object(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; an SAE directory holds {CONFIG} and {WEIGHTS}") from None
    for key in ("d_in", "d_sae", "d_out", "k", "n_sources"):
        if key in config and not (type(config[key]) is int and 0 < config[key] < 2**31):
            raise ValueError(f"{path}: {key} is {config[key]!r}; it must be a whole number above 0")
    if not isinstance(config.get("metadata") or {}, dict):
        raise ValueError(f"{path}: metadata is {config['metadata']!r}; it must be an object")
    picks_k = str(config.get("architecture")).startswith("topk")
    crosses = str(config.get("architecture")).endswith("crosscoder")
    required = ["architecture", "d_in", "d_sae", "dtype"] + ["k"] * picks_k + ["n_sources"] * crosses
    for key in required:
        if key not in config:
            raise ValueError(f"{path}: key {key!r} is missing")
    if crosses and config["d_in"] % config["n_sources"]:
        raise ValueError(f"{path}: n_sources is {config['n_sources']}; it must divide d_in ({config['d_in']})")
    if picks_k and config["k"] > config["d_sae"]:
        raise ValueError(f"{path}: k is {config['k']}; it must be at most d_sae ({config['d_sae']})")
    if str(config["architecture"]) not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{path}: architecture is {config['architecture']!r}; it must be one of {known}")
    for key in ("normalize_activations", "reshape_activations"):
        # SAELens applies nothing for this one when it loads, because its trainer has folded the scale in.
        if config.get(key, "none") not in ("none", "expected_average_only_in"):
            raise ValueError(f"{path}: {key} is {config[key]!r}; only directories with it folded in ('none') are read")
    return config


def _read_tensors(path: Path, names: tuple[str, ...], config: dict[str, Any]) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise ValueError(f"{path}: missing or damaged: {str(error).splitlines()[0]}") from None
    if "threshold" in names and "log_threshold" in tensors:  # how SAELens stored it while training, before 6.48
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if set(tensors) != set(names):
        missing, extra = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
        what = f"tensor {missing[0]!r} is missing" if missing else f"tensor {extra[0]!r} is none of the architecture's"
        raise ValueError(f"{path}: {what}; {config['architecture']} has {', '.join(names)}")
    i, s, o = config["d_in"], config["d_sae"], config.get("d_out", config["d_in"])
    shapes: dict[str, tuple[int, ...]] = {
        "source_scales": (config.get("n_sources", 1),),
        "W_enc": (i, s),
        "W_dec": (s, o),
        "b_dec": (o,),
        "W_skip": (o, i),
    }
    for name in names:
        found, wanted = tuple(tensors[name].shape), shapes.get(name, (s,))
        if found != wanted:
            raise ValueError(f"{path}: {name} has shape {found}; {CONFIG} says {wanted}")
    dtype = getattr(torch, str(config["dtype"]).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{path.parent / CONFIG}: dtype is {config['dtype']!r}; it must name a floating type")
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
