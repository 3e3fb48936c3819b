"""Writes and reads SAELens's directory format: `cfg.json` and `sae_weights.safetensors`.

SAELens stores W_enc as [i, s], the transpose of ours. BatchTopK and Matryoshka coders are written as `jumprelu` with
their threshold. A scale of the input is folded in, so that the exported coder reads raw activations.

Shapes: d model (input i, output o), s latents.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slms.files import replacing, write_atomic
from slms.sae.base import Coder
from slms.sae.coders import BatchTopK, build_coder
from slms.sae.config import CoderConfig, Kind

FORMAT = "6.54.12"  # the version of SAELens that defines this format
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"

_BASE = ("W_enc", "b_enc", "W_dec", "b_dec")
ARCHITECTURES: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "standard": ("relu", _BASE),
    "topk": ("topk", _BASE),
    "jumprelu": ("jump_relu", (*_BASE, "threshold")),
    "gated": ("gated", ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")),
    "transcoder": ("relu", _BASE),
    "skip_transcoder": ("relu", (*_BASE, "W_skip")),
    "jumprelu_transcoder": ("jump_relu", (*_BASE, "threshold")),
    "jumprelu_skip_transcoder": ("jump_relu", (*_BASE, "threshold", "W_skip")),
}
"""Architecture in `cfg.json` → our kind, and the tensors its file holds: no more, no fewer."""


@dataclass(frozen=True)
class Provenance:
    """The origin of a coder's activations, which readers of the directory rely on as its metadata.

    Args:
        model_name: the language model.
        hook_name: TransformerLens's name of the site.
        hf_hook_name: transformers' name of the module whose output (or input) the site is.
        hook_name_out: TransformerLens's name of a transcoder's target.
        context_size: length of the training blocks, in tokens.
        dataset_path: the corpus.
        prepend_bos: whether each block began with a BOS token.
        exclude_special_tokens: whether special tokens were left out of training.
    """

    model_name: str
    hook_name: str
    hf_hook_name: str = ""
    hook_name_out: str | None = None
    context_size: int | None = None
    dataset_path: str = ""
    prepend_bos: bool = False
    exclude_special_tokens: bool = True

    def metadata(self) -> dict[str, Any]:
        """Return the `metadata` object of `cfg.json`."""
        out = {} if self.hook_name_out is None else {"hook_name_out": self.hook_name_out}
        return {
            "sae_lens_version": FORMAT,
            "sae_lens_training_version": None,
            "model_name": self.model_name,
            "model_class_name": "HookedTransformer",
            "hook_name": self.hook_name,
            "hf_hook_name": self.hf_hook_name,
            "hook_head_index": None,
            "context_size": self.context_size,
            "prepend_bos": self.prepend_bos,
            "seqpos_slice": [None],
            "dataset_path": self.dataset_path,
            "model_from_pretrained_kwargs": {},
            "exclude_special_tokens": self.exclude_special_tokens,
            **out,
        }


@torch.no_grad()
def fold_scale(coder: Coder, scale_in: float, scale_out: float | None = None) -> Coder:
    """Copy `coder`, which was trained to map scale_in·x to scale_out·y, so that the copy maps x to y.

    Activations become 1/scale_out of the trained ones. The norms of W_dec's rows move to the encoder, so that W_dec
    has unit rows. An autoencoder has only one scale.
    """
    scale_out = scale_in if scale_out is None else scale_out
    folded = copy.deepcopy(coder)
    if (norms := folded.norms) is not None:
        folded.W_enc.mul_(norms[:, None])
        folded.W_dec.div_(norms[:, None])
        if folded.b_enc is not None:
            folded.b_enc.mul_(norms)
        folded.unit_norm = True
    ratio = scale_in / scale_out
    folded.W_enc.mul_(ratio)
    if folded.W_skip is not None:
        folded.W_skip.mul_(ratio)
    for name in ("b_enc", "b_dec", "threshold", "b_gate", "b_mag"):
        if (tensor := getattr(folded, name, None)) is not None:
            tensor.div_(scale_out)
    return folded


def architecture(coder: Coder) -> str:
    """Return the name of `coder`'s architecture in `cfg.json`.

    Raises:
        ValueError: the format has no such architecture.
    """
    kind = "jump_relu" if isinstance(coder, BatchTopK) else coder.config.kind
    stem = {"relu": "standard", "jump_relu": "jumprelu"}.get(kind, kind)
    if not coder.is_transcoder:
        return stem
    if kind not in ("relu", "jump_relu"):
        raise ValueError(
            f"coder.kind is {kind!r}: SAELens's format has no such transcoder; train `batch_topk` or `relu`"
        )
    skip = "skip_" if coder.W_skip is not None else ""
    return f"{skip}transcoder" if kind == "relu" else f"jumprelu_{skip}transcoder"


def _tensors(coder: Coder, names: tuple[str, ...]) -> dict[str, Tensor]:
    assert coder.unit_norm, "fold_scale first"
    tensors = {name: getattr(coder, name).detach().cpu() for name in names}
    tensors["W_enc"] = tensors["W_enc"].T
    if isinstance(coder, BatchTopK):
        if coder.threshold < 0:
            raise ValueError("this coder has no threshold yet: train it past its warm-up before exporting it")
        tensors["threshold"] = tensors["threshold"].expand(coder.d_sae)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save(coder: Coder, directory: Path, provenance: Provenance) -> None:
    """Write `coder` as a SAELens directory. Fold its scale in first (`fold_scale`).

    Raises:
        ValueError: the format does not hold this architecture or state.
    """
    name = architecture(coder)
    tensors = _tensors(coder, ARCHITECTURES[name][1])
    config = {
        "architecture": name,
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "dtype": str(coder.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": not coder.is_transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if name == "topk":
        config |= {"k": coder.config.k, "rescale_acts_by_decoder_norm": False}
    if coder.is_transcoder:
        config["d_out"] = coder.d_out
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_atomic(directory / CONFIG, json.dumps(config | {"metadata": provenance.metadata()}, indent=1))


class Loaded(NamedTuple):
    """A coder read from a directory, ready for inference, and the directory's metadata."""

    coder: Coder
    metadata: dict[str, Any]


def load(directory: Path) -> Loaded:
    """Read a SAELens directory.

    If a `topk` coder rescales its pre-activations by the decoder's norms, the norms are folded in.

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
    made = CoderConfig(kind=kind, d_sae=s, k=config["k"] if name == "topk" else min(32, s), skip="W_skip" in names)
    coder = build_coder(made, config["d_in"], tensors["W_dec"].shape[1] if transcoder else None)
    if name == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    coder.to(tensors["W_enc"].dtype).load_state_dict(tensors)
    return Loaded(coder.eval().requires_grad_(False), config.get("metadata") or {})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; an SAE directory holds {CONFIG} and {WEIGHTS}") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON: nested too deeply") from None
    except ValueError as error:  # the file is malformed, not UTF-8, or has a number of thousands of digits
        raise ValueError(f"{path}: not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds no object")
    for key in ("d_in", "d_sae", "d_out", "k"):
        if key in config and not (type(config[key]) is int and 0 < config[key] < 2**31):
            raise ValueError(f"{path}: {key} is {config[key]!r}; it must be a whole number above 0")
    if not isinstance(config.get("metadata") or {}, dict):
        raise ValueError(f"{path}: metadata is {config['metadata']!r}; it must be an object")
    required = ["architecture", "d_in", "d_sae", "dtype"] + ["k"] * (config.get("architecture") == "topk")
    for key in required:
        if key not in config:
            raise ValueError(f"{path}: key {key!r} is missing")
    if config["architecture"] == "topk" and config["k"] > config["d_sae"]:
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
    if set(tensors) != set(names):
        missing, extra = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
        what = f"tensor {missing[0]!r} is missing" if missing else f"tensor {extra[0]!r} is none of the architecture's"
        raise ValueError(f"{path}: {what}; {config['architecture']} has {', '.join(names)}")
    i, s, o = config["d_in"], config["d_sae"], config.get("d_out", config["d_in"])
    shapes = {"W_enc": (i, s), "W_dec": (s, o), "b_dec": (o,), "W_skip": (o, i)}
    for name in names:
        found, wanted = tuple(tensors[name].shape), shapes.get(name, (s,))
        if found != wanted:
            raise ValueError(f"{path}: {name} has shape {found}; {CONFIG} says {wanted}")
    dtype = getattr(torch, str(config["dtype"]).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{path.parent / CONFIG}: dtype is {config['dtype']!r}; it must name a floating type")
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
