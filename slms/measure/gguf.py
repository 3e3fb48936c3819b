"""Writes a model as a GGUF file, and keeps it only if llama.cpp computes the same from it.

Shapes: b blocks, t position, v vocabulary.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from slms.files import PART
from slms.measure.llama_cpp import Engine, Times, absent, build, in_turns
from slms.models.families import family_name
from slms.models.io import quiet_transformers
from slms.models.routed import routed_modules
from slms.models.stock import ARCHITECTURES, check_model
from slms.models.stock_weights import write_stock
from slms.models.to_gguf import BLOCK, TYPES, check, tensors, write_gguf

PERPLEXITY = {"f32": 1e-4, "q8_0": 5e-3}
"""The largest relative difference of perplexity with which a file is kept."""
ARGMAX = {"f32": 0.999, "q8_0": 0.95}
"""The smallest share of tokens on which model and file must predict the same token, of those that count."""
LEAD = {"f32": 0.0, "q8_0": 1.0}
"""A token counts if the model's largest logit leads by so much; rounding to 8 bits turns many others of a mixture."""
EXPERTS = ("mixtral", "qwen3_moe")
"""The stock mixtures of experts that llama.cpp computes as transformers does."""


class GGUFComparison(NamedTuple):
    """How a model and its GGUF file agree; without llama.cpp only the stored tensors were compared."""

    engine: str
    """the build of llama.cpp, or why it was not used"""
    tokens: int = 0
    perplexity: float | None = None
    """of the model"""
    exported: float | None = None
    """perplexity of the file in llama.cpp"""
    argmax: float | None = None
    """share of tokens at which both have the same largest logit: greedy decoding's choice"""
    clear: float | None = None
    """the same share of the tokens at which the model's largest logit leads by LEAD["q8_0"]"""
    retokenized: float | None = None
    """share of blocks whose text llama.cpp's tokenizer turns into the same tokens as the model's"""

    def equal(self, type: str) -> bool:
        """Whether the file may be kept; without llama.cpp the stored tensors have been compared already."""
        if self.perplexity is None or self.exported is None or self.argmax is None or self.clear is None:
            return True
        same = self.clear if LEAD[type] else self.argmax
        return abs(self.exported / self.perplexity - 1) <= PERPLEXITY[type] and same >= ARGMAX[type]


def export_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: str | Path, input_ids: Tensor, type: str = "f32"
) -> GGUFComparison:
    """Write a dense or mixture-of-experts model to a new GGUF file, which is kept only if it holds the same model.

    Args:
        input_ids: token ids [b, t] on which llama.cpp, where it is installed, must give the same as the model.
        type: `f32` or `q8_0`.

    Raises:
        ValueError: the file exists, GGUF or llama.cpp cannot hold this model, or it computes something else.
    """
    file = Path(file)
    if os.path.lexists(file):
        raise ValueError(f"{file} exists; it is not replaced")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{PART}{file.name}")
    try:
        write_gguf(model, tokenizer, part, type, file.stem)
        check_tensors(model, part, type)
        found = compare_gguf(model, tokenizer, part, input_ids)
        if not found.equal(type):
            raise ValueError(
                f"{file} is not kept, since llama.cpp computes something else: perplexity {found.exported:.6g}, the "
                f"model's is {found.perplexity:.6g}; the same token is predicted on {found.argmax:.2%}, and on "
                f"{found.clear:.2%} where it leads by {LEAD['q8_0']:g} nat"
            )
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return found


def as_experts(model: PreTrainedModel) -> PreTrainedModel:
    """Return a routed model as the mixture of experts of transformers that llama.cpp has, and a dense one as it is.

    Raises ValueError, naming all that stands in the way, if a routed model is none.
    """
    if not routed_modules(model):
        return model
    family = family_name(model.config.model_type)
    name = next((name for name in EXPERTS if family in ARCHITECTURES[name].families), None)
    if name is None:
        fit = ", ".join(fit for name in EXPERTS for fit in ARCHITECTURES[name].families)
        raise ValueError(f"a routed {family} has no GGUF form: llama.cpp computes only {fit} as they are routed here")
    check_model(model, name, gguf=True)
    with tempfile.TemporaryDirectory() as place, quiet_transformers():
        write_stock(model, name, Path(place))
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, local_files_only=True).eval()


class Timed(NamedTuple):
    """The speed of a model in llama.cpp, or why there is none."""

    model: str
    type: str
    times: Times | None
    why_not: str | None = None


def time_models(models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, prompt: int) -> list[Timed]:
    """Time models by name in llama.cpp, F32 and Q8_0, all in turns, on as many threads as PyTorch has.

    A routed model is timed as the mixture of experts that it is. A model that cannot be timed has the reason in place
    of times. prompt: tokens of a prompt.
    """
    cases = [(name, type) for name in models for type in TYPES]
    if (why := absent(times_only=True)) is not None:
        return [Timed(*case, None, why) for case in cases]
    found: dict[tuple[str, str], Timed] = {}
    with tempfile.TemporaryDirectory() as place:
        files: dict[tuple[str, str], Path] = {}
        for name, type in cases:
            file = Path(place, f"{name}-{type}.gguf")
            try:
                files[name, type] = write_gguf(as_experts(models[name]), tokenizer, file, type, name)
            except ValueError as error:
                found[name, type] = Timed(name, type, None, str(error))
        if files:
            times = in_turns(list(files.values()), torch.get_num_threads(), prompt)
            found |= {case: Timed(*case, one) for case, one in zip(files, times, strict=True)}
    return [found[case] for case in cases]


@torch.inference_mode()
def compare_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, input_ids: Tensor
) -> GGUFComparison:
    """Run a model and its GGUF file on input_ids [b, t]; logits of one block are held at a time."""
    if (why := absent()) is not None:
        return GGUFComparison(f"{why}; only the stored tensors were compared")
    nats, same, clear, leading, again = [0.0, 0.0], 0, 0, 0, 0
    with Engine(file, torch.get_num_threads(), input_ids.shape[1], exact=True) as engine:
        for ids in input_ids:
            own = model(ids[None].to(model.device)).logits[0].float().cpu()
            read = engine.logits(ids.tolist())
            for i, logits in enumerate((own, read)):
                nats[i] += F.cross_entropy(logits[:-1], ids[1:].cpu(), reduction="sum").double().item()
            equal, (first, second) = own.argmax(-1) == read.argmax(-1), own.topk(2, -1).values.unbind(-1)
            leads = first - second > LEAD["q8_0"]
            same, clear, leading = same + int(equal.sum()), clear + int(equal[leads].sum()), leading + int(leads.sum())
            text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
            again += engine.tokenize(text) == tokenizer(text).input_ids
    predicted = input_ids.numel() - len(input_ids)
    ours, theirs = (math.exp(total / predicted) for total in nats)
    shares = same / input_ids.numel(), clear / leading if leading else 1.0, again / max(len(input_ids), 1)
    return GGUFComparison(build(), input_ids.numel(), ours, theirs, *shares)


def check_tensors(model: PreTrainedModel, file: Path, type: str) -> None:
    """Raise ValueError unless the file holds every tensor of the model: exactly, or in Q8_0 to half a step."""
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, weight in _all(model, type):
        tensor = stored.pop(name, None)
        read = None if tensor is None else gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if read is None or read.shape != weight.shape or not _close(read, weight, type):
            raise ValueError(f"{file}: {name} was not written as it is")
    if stored:
        raise ValueError(f"{file} holds {len(stored)} tensors that the model has not, as {next(iter(stored))}")


def _all(model: PreTrainedModel, type: str) -> Iterable[tuple[str, np.ndarray]]:
    return tensors(model, check(model.config, type), type)


def _close(read: np.ndarray, weight: np.ndarray, type: str) -> bool:
    if type == "f32" or weight.ndim == 1 or weight.shape[-1] % BLOCK:
        return np.array_equal(read, weight)
    blocks = weight.reshape(-1, BLOCK)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    # A scale is kept in fp16, which is off by at most 2⁻¹¹ of the largest of 127 steps.
    return bool((np.abs(read.reshape(-1, BLOCK) - blocks) <= 0.5 * step + 127 * step * 2**-11 + 1e-7).all())
