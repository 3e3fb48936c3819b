"""Writes the transcoders of a model's layers as a circuit-tracer transcoder set.

circuit-tracer reads `config.yaml` and, for each layer, a file with `W_enc` [s, i], `b_enc` [s], `W_dec` [s, o],
`b_dec` [o], `activation_function.threshold` [s] and `W_skip` [o, i]; without a threshold it uses ReLU. Its layers begin
at 0 without a gap and have equal widths. Its loader has no TopK, so such a transcoder leaves with one threshold, at
which it uses k latents a token on average.

Shapes: n tokens, d model (input i, output o), s latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from slms.models.mlp_norm import Affine
from slms.sae.base import Coder
from slms.sae.coders import BatchTopK, Gated, JumpReLU, ReLU, TopK

FORMAT = "0.5.0"  # the version of circuit-tracer that defines this format


HOOKS = ("ln2.hook_normalized", "hook_mlp_out")
"""TransformerLens's names, within a layer, of what a transcoder of an MLP reads and writes. The first is the norm's
vector *before* its weight and bias, which `layer_tensors` therefore folds into the encoder."""


def layer_of(source: str, target: str) -> int | None:
    """Return the layer of whose MLP a coder of these sites is a transcoder; None if it is another coder."""
    kind, _, layer = source.partition(".")
    return int(layer) if kind == "mlp_in" and target == f"mlp_out.{layer}" else None


def check_set(coders: Mapping[int, Coder], names: Mapping[int, str], n_layers: int) -> None:
    """Raise ValueError if these transcoders, by layer, do not make a set."""
    missing = [layer for layer in range(n_layers) if layer not in coders]
    if missing:
        have = ", ".join(map(str, sorted(coders))) or "none"
        raise ValueError(
            f"circuit_tracer: layer {missing[0]} has no transcoder (of {n_layers} layers: {have}); train one for each "
            f"layer, {{site: mlp_in.L, target: mlp_out.L}}, in one run or several"
        )
    for layer, coder in coders.items():
        if isinstance(coder, Gated):
            raise ValueError(f"{names[layer]}: circuit-tracer has no gated transcoder; train topk, batch_topk or relu")
        if coder.d_sae != coders[0].d_sae:
            raise ValueError(
                f"{names[layer]}: {coder.d_sae} latents, but {names[0]} has {coders[0].d_sae}; the transcoders of a "
                "set have equal widths"
            )
        if (coder.W_skip is None) != (coders[0].W_skip is None):
            raise ValueError(f"{names[layer]} and {names[0]}: either all transcoders of a set have `skip`, or none")


@torch.no_grad()
def mean_threshold(coder: TopK, x: Tensor) -> Tensor:
    """Return the threshold at which inputs x [n, i] use k latents a token on average."""
    pre = _pre(coder, x)
    # Halfway to the next value: what was chosen is above it, whatever the last bits of another product are.
    top = pre.flatten().topk(min(len(x) * coder.config.k + 1, pre.numel())).values
    return ((top[-2] + top[-1]) / 2).clamp(min=0.0)


def thresholded(coder: Coder, x: Tensor, threshold: Tensor) -> Tensor:
    """Return the activations [n, s] above a threshold."""
    pre = _pre(coder, x)
    return pre * (pre > threshold)


def fvu(output: Tensor, y: Tensor) -> float:
    """Return Σ‖y − ŷ‖² / Σ‖y − ȳ‖²."""
    return float((y - output).square().sum() / (y - y.mean(0)).square().sum())


def _pre(coder: Coder, x: Tensor) -> Tensor:
    assert coder.unit_norm and coder.b_enc is not None
    return coder.project(x) + coder.b_enc


@torch.no_grad()
def layer_tensors(coder: Coder, threshold: Tensor | None, norm: Affine) -> dict[str, Tensor]:
    """Return one layer's tensors.

    Args:
        coder: the transcoder, with the norms of W_dec's rows folded in.
        threshold: TopK's threshold, None for other kinds.
        norm: the map from what the set reads to the coder's input.
    """
    if isinstance(coder, JumpReLU | BatchTopK):
        threshold = coder.threshold
    assert coder.unit_norm and (threshold is not None or isinstance(coder, ReLU))
    assert coder.b_enc is not None
    tensors = {"W_enc": coder.W_enc * norm.weight, "b_enc": coder.b_enc + coder.W_enc @ norm.bias}
    tensors |= {"W_dec": coder.W_dec, "b_dec": coder.b_dec}
    if threshold is not None:
        tensors["activation_function.threshold"] = threshold.expand(coder.d_sae)
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip * norm.weight
        tensors["b_dec"] = coder.b_dec + coder.W_skip @ norm.bias
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_set(
    coders: Mapping[int, Coder],
    names: Mapping[int, str],
    n_layers: int,
    thresholds: Mapping[int, Tensor],
    norms: Mapping[int, Affine],
    directory: Path,
    model_name: str,
) -> None:
    """Write `config.yaml` and `layer_L.safetensors` of one transcoder for each layer's MLP.

    Args:
        coders: the transcoders by layer, with norms folded in.
        names: their directories, for messages.
        n_layers: layers of the model.
        thresholds: of the TopK ones.
        norms: the affine maps of the norms that the MLPs read.
        directory: where to write.
        model_name: the language model.

    Raises:
        ValueError: a layer has none, or they do not make a set.
    """
    check_set(coders, names, n_layers)
    for layer, coder in coders.items():
        tensors = layer_tensors(coder, thresholds.get(layer), norms[layer])
        save_file(tensors, directory / f"layer_{layer}.safetensors")
    config = {
        "model_name": model_name,
        "model_kind": "transcoder_set",
        "feature_input_hook": HOOKS[0],
        "feature_output_hook": HOOKS[1],
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
