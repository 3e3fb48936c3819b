"""The card and the closing lines of an exported model."""

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from slms.measure.export import Comparison
from slms.measure.gguf import GGUFComparison
from slms.models.card import HUB_ID, portable, shortened
from slms.models.routed import routed_modules
from slms.models.stock import ARCHITECTURES
from slms.report.provenance import versions


def export_card(
    model: PreTrainedModel, name: str, found: Comparison, *, title: str, base: str | None, text: str, command: str
) -> str:
    """The README.md of a routed model that was exported as the architecture `name`, with the hub's metadata.

    Args:
        found: how the export compares with the model.
        title: the name of the run or model.
        base: the dense model that the run started from.
        text: what both were compared on, in words.
        command: the command that made the export.
    """
    is_id = base is not None and HUB_ID.fullmatch(base)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["slms", name, "mixture-of-experts"],
        base_model=base if is_id else None,
    )
    mlps = routed_modules(model)
    first = next(iter(mlps.values()))
    p, n = first.config.n_pathways, first.config.n_shared
    shared = f", and {n} more that every token runs form the shared expert" if n else ""
    made = f"Made from `{shortened(base)}`. " if base else ""
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    return f"""---
{data}
---

# {title}

{made}The MLPs of {", ".join(f"`{place}`" for place in mlps)} are mixtures of {p - n} experts, of which each token \
runs {first.k - n}{shared}. They were split out of a dense model by slms. This is a plain \
`{ARCHITECTURES[name].model}` checkpoint: no code comes with it, and none of slms is needed to run it.

## How it was made

```bash
{portable(command)}
```

{used}

## Compared with the model it was made from

The export was opened by transformers in a process without slms and compared on {found.tokens:,} tokens of \
{shortened(text)}.

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

## Licence

None is stated here. The licence of the base model, and perhaps that of the training text, decides what you may \
choose. Before you upload, write `license:` into the metadata at the head of this file.
"""


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
