"""Writes SAELens's directory format: `cfg.json` and `sae_weights.safetensors`.

SAELens stores W_enc as [i, s], the transpose of ours. BatchTopK and Matryoshka coders are written as `jumprelu` with
their threshold. A scale of the input is folded in, so that the exported coder reads raw activations. A coder for which
SAELens has no form is written in the same layout under a name of its own, which `slms.sae.load` reads and SAELens
refuses.

Shapes: d model (input i, output o), s latents.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from slms.files import replacing, write_atomic
from slms.models.card import CARD
from slms.sae.base import Coder
from slms.sae.card import coder_card
from slms.sae.coders import BatchTopK
from slms.sae.config import Kind

FORMAT = "6.54.12"  # the version of SAELens that defines this format
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"

_BASE = ("W_enc", "b_enc", "W_dec", "b_dec")
_GATED = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
ARCHITECTURES: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "standard": ("relu", _BASE),
    "topk": ("topk", _BASE),
    "jumprelu": ("jump_relu", (*_BASE, "threshold")),
    "gated": ("gated", _GATED),
    "transcoder": ("relu", _BASE),
    "skip_transcoder": ("relu", (*_BASE, "W_skip")),
    "jumprelu_transcoder": ("jump_relu", (*_BASE, "threshold")),
    "jumprelu_skip_transcoder": ("jump_relu", (*_BASE, "threshold", "W_skip")),
    "topk_transcoder": ("topk", _BASE),
    "topk_skip_transcoder": ("topk", (*_BASE, "W_skip")),
    "gated_transcoder": ("gated", _GATED),
    "gated_skip_transcoder": ("gated", (*_GATED, "W_skip")),
    "topk_crosscoder": ("topk", (*_BASE, "source_scales")),
    "jumprelu_crosscoder": ("jump_relu", (*_BASE, "threshold", "source_scales")),
}
"""Architecture in `cfg.json` → our kind, and the tensors its file holds: no more, no fewer."""
OURS = tuple(name for name in ARCHITECTURES if name.startswith(("topk_", "gated_")) or "crosscoder" in name)
"""Architectures that SAELens lacks."""


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
        versus: the second language model, if the coder reads two.
    """

    model_name: str
    hook_name: str
    hf_hook_name: str = ""
    hook_name_out: str | None = None
    context_size: int | None = None
    dataset_path: str = ""
    prepend_bos: bool = False
    exclude_special_tokens: bool = True
    versus: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the `metadata` object of `cfg.json`."""
        ours = {"hook_name_out": self.hook_name_out, "versus_model_name": self.versus}
        given = {key: value for key, value in ours.items() if value is not None}
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
            **given,
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


@torch.no_grad()
def fold_sources(coder: Coder, scale: Tensor) -> Coder:
    """Copy a crosscoder, which was trained on scale ∘ x, so that the copy reads x; `scale` [i] is one number a source.

    Activations become 1/c of the trained ones, c the mean scale. A latent's norms, times `source_scales`, sum to 1.
    """
    folded, mean = fold_scale(coder, 1.0), scale.mean()
    relative = scale / mean
    folded.W_enc.mul_(relative)
    folded.W_dec.div_(relative)
    folded.b_dec.div_(scale)
    folded.source_scales = relative.view(coder.n_sources, -1)[:, 0].clone()
    for name in ("b_enc", "threshold"):
        if (tensor := getattr(folded, name, None)) is not None:
            tensor.div_(mean)
    return folded


def architecture(coder: Coder) -> str:
    """Return the name of `coder`'s architecture in `cfg.json`; those in `OURS` are unknown to SAELens."""
    kind = "jump_relu" if isinstance(coder, BatchTopK) else coder.config.kind
    stem = {"relu": "standard", "jump_relu": "jumprelu"}.get(kind, kind)
    if coder.n_sources > 1:
        return f"{stem}_crosscoder"
    if not coder.is_transcoder:
        return stem
    skip = "skip_" if coder.W_skip is not None else ""
    return f"{skip}transcoder" if kind == "relu" else f"{stem}_{skip}transcoder"


def _tensors(coder: Coder, names: tuple[str, ...]) -> dict[str, Tensor]:
    assert coder.unit_norm or coder.config.kind == "topk", "fold_scale first"
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
        ValueError: the format does not hold this state.
    """
    name = architecture(coder)
    tensors = _tensors(coder, ARCHITECTURES[name][1])
    config: dict[str, Any] = {
        "architecture": name,
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "dtype": str(coder.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": not coder.is_transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if coder.config.kind == "topk":
        config |= {"k": coder.config.k, "rescale_acts_by_decoder_norm": not coder.unit_norm}
    if coder.is_transcoder:
        config["d_out"] = coder.d_out
    if coder.n_sources > 1:
        config["n_sources"] = coder.n_sources
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    config["metadata"] = provenance.metadata()
    write_atomic(directory / CONFIG, json.dumps(config, indent=1))
    write_atomic(directory / CARD, coder_card(config, name not in OURS))
