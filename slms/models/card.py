"""The model card beside saved weights: a `README.md` with metadata that the Hugging Face hub reads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from slms.models.families import dense_type
from slms.models.routed import routed_modules
from slms.routing import RULES

CARD = "README.md"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_TEMPLATE = Path(__file__).with_name("card_template.md")


def model_card(
    model: PreTrainedModel,
    *,
    name: str | None = None,
    base: str | None = None,
    corpus: str | None = None,
    results: Sequence[EvalResult] = (),
    measured: str = "",
) -> str:
    """Write a model's card: Markdown under YAML metadata.

    Args:
        name: the card's title; by default the model's class.
        base: the model that this one was made from. A hub id goes into the metadata; of a path, the text names the end.
        corpus: the training text, written in the same way.
        results: numbers for the metadata's `model-index`.
        measured: Markdown with the measured numbers.
    """
    routed, title = routed_modules(model), name or type(model).__name__
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["slms", *(["routed", "conditional-computation"] if routed else [])],
        base_model=base if base and HUB_ID.fullmatch(base) else None,
        datasets=[corpus] if corpus and HUB_ID.fullmatch(corpus) else None,
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    mlps, heads = ({place: m for place, m in routed.items() if m.part == part} for part in ("mlp", "attn"))
    config = next(iter(mlps.values())).config if mlps else None
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=title,
        family=dense_type(model.config.model_type),
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        base=base and shortened(base),
        corpus=corpus and shortened(corpus),
        routed=bool(routed),
        places=", ".join(f"`{place}`" for place in mlps),
        heads=", ".join(f"`{place}`" for place in heads),
        chosen_heads=next((module.summary() for module in heads.values()), None),
        routing=config,
        choice=config and RULES[config.rule].words.format(**config.to_dict()),
        measured=measured,
    )
    return str(card).rstrip() + "\n"


def portable(words: str) -> str:
    """Cut the absolute paths in a command line (or name) to their last component, since a card goes elsewhere.

    >>> portable("python train.py --data.corpus.name=/home/me/text.txt --output_dir /tmp/runs")
    'python train.py --data.corpus.name=text.txt --output_dir runs'
    """
    try:
        split = shlex.split(words)
    except ValueError:
        split = words.split()
    return shlex.join(shortened(word) for word in split)


def shortened(word: str) -> str:
    """Cut the absolute path in a name or a command's argument to its last component.

    >>> shortened("/home/me/text.txt (every 50th document)"), shortened("stories")
    ('text.txt (every 50th document)', 'stories')
    """
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() or value.startswith("~"):
            value = kind(value).name
    return option + equals + value
