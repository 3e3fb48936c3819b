"""The cards and the closing lines of an exported model."""

from typing import NamedTuple

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from slms.measure.export import Comparison
from slms.measure.gguf import GGUFComparison
from slms.models.card import HUB_ID, portable, shortened
from slms.models.routed import routed_modules
from slms.models.stock import ARCHITECTURES
from slms.report.provenance import versions

LICENCE = """## Licence

None is stated here. The licence of the base model, and perhaps that of the training text, decides what you may \
choose. Before you upload, write `license:` into the metadata at the head of this file.
"""


class Origin(NamedTuple):
    """What a card says of where an export came from."""

    title: str
    """the name of the run or model"""
    base: str | None
    """the model that the run started from"""
    text: str
    """what model and export were compared on, in words"""
    command: str | None
    """the command that made the export; None for the function"""


def export_card(model: PreTrainedModel, name: str, found: Comparison, origin: Origin) -> str:
    """The README.md of a routed model that was exported as the architecture `name`, with the hub's metadata.

    Args:
        found: how the export compares with the model.
    """
    return f"""---
{_metadata(origin.base, [name, "mixture-of-experts"], "transformers")}
---

# {origin.title}

{_made(origin.base)}{experts(model)} They were split out of a dense model by slms. This is a plain \
`{ARCHITECTURES[name].model}` checkpoint: no code comes with it, and none of slms is needed to run it.

{how(origin.command, name)}

## Compared with the model it was made from

The export was opened by transformers in a process without slms and compared on {found.tokens:,} tokens of \
{shortened(origin.text)}.

| | routed model | this export |
|---|---|---|
| perplexity | {found.perplexity:.6f} | {found.exported:.6f} |
| same most likely token | | {found.argmax:.2%} |
| largest difference of two logits | | {found.largest:.1e} |

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/directory")
```

{LICENCE}"""


def gguf_card(model: PreTrainedModel, file: str, type: str, found: GGUFComparison, origin: Origin) -> str:
    """The README.md beside a GGUF file, with the hub's metadata.

    Args:
        model: the dense or routed model.
        file: the name of the GGUF file.
        type: `f32` or `q8_0`.
        found: how the file compares with the model.
    """
    routed = bool(routed_modules(model))
    split = f"{experts(model)} They were split out of a dense model by slms. " if routed else ""
    compared = "llama.cpp was not at hand to run it."
    if found.perplexity is not None:
        compared = f"llama.cpp ran it on {shortened(origin.text)}:\n\n```text\n{gguf_lines(found)}\n```"
    return f"""---
{_metadata(origin.base, ["gguf", "llama.cpp", *(["mixture-of-experts"] if routed else [])], "gguf")}
---

# {origin.title}

{_made(origin.base)}{split}`{file}` is one GGUF file with the weights in {type.upper()} and the tokenizer. llama.cpp, \
and what is built on it, opens it; none of slms is needed to run it.

{how(origin.command, "gguf", type)}

## Compared with the model it was made from

Every tensor of the file was read back and is what the model has, up to the rounding of its type. {compared}

## Use

```bash
llama-cli -m {file}      # to chat or complete
llama-server -m {file}   # to serve
```

{LICENCE}"""


def experts(model: PreTrainedModel) -> str:
    """One sentence about the mixtures of experts that a routed model's MLPs are."""
    mlps = routed_modules(model)
    first = next(iter(mlps.values()))
    p, n = first.config.n_pathways, first.config.n_shared
    shared = f", and {n} more that every token runs form the shared expert" if n else ""
    layers = sorted(mlp.layer_index for mlp in mlps.values())
    whole = len(layers) > 2 and layers[-1] - layers[0] < len(layers)
    named = f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))
    of = f"layer{'s' * (len(layers) > 1)} {named}"
    return f"The MLPs of {of} are mixtures of {p - n} experts, of which each token runs {first.k - n}{shared}."


def how(command: str | None, format: str, type: str | None = None) -> str:
    """The section that says how an export was made: by a command, or else by `slms.export_model`; with versions."""
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    if command is None:
        more = "" if type is None else f', type="{type}"'
        call = f'slms.export_model(model, tokenizer, "path/of/this/directory", input_ids, "{format}"{more})'
        block = f"```python\nimport slms\n\n{call}\n```"
    else:
        block = f"```bash\n{portable(command)}\n```"
    return f"## How it was made\n\n{block}\n\n{used}"


def _made(base: str | None) -> str:
    return f"Made from `{shortened(base)}`. " if base else ""


def _metadata(base: str | None, tags: list[str], library: str) -> ModelCardData:
    is_id = base is not None and HUB_ID.fullmatch(base)
    return ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        tags=["slms", *tags],
        base_model=base if is_id else None,
    )


def export_lines(found: Comparison) -> str:
    """What the command prints about the comparison."""
    change = found.exported / found.perplexity - 1
    return (
        f"perplexity  {found.perplexity:.6f}, exported {found.exported:.6f} ({change:+.1e}), {found.tokens:,} tokens\n"
        f"argmax      equal on {found.argmax:.3%} of the tokens; logits differ by at most {found.largest:.1e}"
    )


def gguf_lines(found: GGUFComparison) -> str:
    """How a GGUF file and its model agree, and in which engine, in lines for the terminal."""
    if found.perplexity is None:
        return found.engine
    return (
        f"perplexity {found.perplexity:.6g}, of the file {found.exported:.6g}, on {found.tokens:,} tokens\n"
        f"the same token predicted on {found.argmax:.2%}, {found.clear:.2%} where the best leads by a nat; "
        f"{found.retokenized:.1%} of the texts get the same tokens\n"
        f"{found.engine}"
    )
