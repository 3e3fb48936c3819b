"""The model card that lies beside saved weights: `README.md` with metadata as the Hugging Face hub reads it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

from slms.models.routed_mlp import routed_layers
from slms.routing import RULES

CARD = "README.md"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_USE = """```python
import slms  # makes transformers' Auto classes know routed models; no remote code

model, tokenizer = slms.load_model("path/of/this/directory")
model, tokenizer = slms.load_base("owner/name")  # the same from the hub
```

`AutoModelForCausalLM.from_pretrained` and `pipeline` open it too once `slms` is imported."""
_USE_DENSE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/directory")
```"""


def model_card(
    model: PreTrainedModel,
    *,
    name: str | None = None,
    base: str | None = None,
    corpus: str | None = None,
    results: Sequence[EvalResult] = (),
    measured: str = "",
) -> str:
    """What is known of a model, as Markdown under YAML metadata.

    Args:
        name: title of the card; by default its class.
        base: the model that it was made from; metadata where it is a hub id, else its last path component in words.
        corpus: the text that it was trained on, likewise.
        results: numbers for the metadata's `model-index`.
        measured: Markdown with the measured numbers.
    """
    layers, title = routed_layers(model), name or type(model).__name__
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["slms", *(["routed", "conditional-computation"] if layers else [])],
        base_model=base if base and _HUB_ID.fullmatch(base) else None,
        datasets=[corpus] if corpus and _HUB_ID.fullmatch(corpus) else None,
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}", _described(model, base, corpus)]
    if layers:
        parts += ["## Routing", _routing(model)]
    if measured:
        parts += ["## Measured", measured]
    parts += ["## Use", _USE if layers else _USE_DENSE]
    return "\n\n".join(parts) + "\n"


def portable(words: str) -> str:
    """A command line (or a name) whose absolute paths are cut to their last component: a card goes to other machines.

    >>> portable("python train.py --data.corpus.name=/home/me/text.txt --output_dir /tmp/runs")
    'python train.py --data.corpus.name=text.txt --output_dir runs'
    """
    try:
        split = shlex.split(words)
    except ValueError:
        split = words.split()
    return shlex.join(_last(word) for word in split)


def _last(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() or value.startswith("~"):
            value = kind(value).name
    return option + equals + value


def _described(model: PreTrainedModel, base: str | None, corpus: str | None) -> str:
    kind = model.config.model_type.removeprefix("routed_")
    count = sum(p.numel() for p in model.parameters())
    text = f"A causal language model of type `{kind}` with {count:,} parameters"
    text += f", made from `{_last(base)}`" if base else ""
    text += f", trained on `{_last(corpus)}`" if corpus else ""
    return (
        f"{text}. Weights are safetensors of type {str(model.dtype).removeprefix('torch.')}; no code comes with them."
    )


def _routing(model: PreTrainedModel) -> str:
    layers = routed_layers(model)
    first = next(iter(layers.values()))
    config = first.config
    choice = RULES[config.rule].words.format(**config.to_dict())
    chosen = f"are chosen for each token by a `{config.router}` router"
    by = "are the same for every token" if config.router == "static" else chosen
    return (
        f"The MLPs of layers {', '.join(map(str, layers))} are split into {config.n_pathways} pathways of neurons "
        f"(partition `{config.partition}`); {choice} {by}, and only their neurons are computed."
    )
