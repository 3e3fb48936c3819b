"""The cards of exported coders: a `README.md` beside a transcoder set, or beside what Neuronpedia imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCardData

from slms.models.card import HUB_ID
from slms.report.export import LICENCE, how
from slms.sae.circuit_tracer import FORMAT, HOOKS


def set_card(model: str, title: str, n_layers: int, d_sae: int, lines: Sequence[str], command: str) -> str:
    """The README.md of a transcoder set, with the hub's metadata.

    Args:
        model: the language model, by its hub id or short name.
        title: the name of the run or runs.
        n_layers: layers of the model, each with one transcoder.
        d_sae: features of each.
        lines: what became of transcoders that the format cannot hold as they are.
        command: the command that made the export.
    """
    changed = "\n".join(f"- {line}" for line in lines) + "\n\n" if lines else ""
    return f"""---
{_metadata(model, ["circuit-tracer", "transcoder"], "circuit-tracer")}
---

# {title}

Transcoders of the MLPs of `{model}`: one for each of its {n_layers} layers, with {d_sae} features each. They were \
trained by slms. `config.yaml` and `layer_L.safetensors` are a transcoder set in the format of circuit-tracer \
{FORMAT}; no code comes with them, and none of slms is needed to open them.

{changed}{how(command, "circuit_tracer")}

## Use

```python
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

layers = {{i: f"path/of/this/directory/layer_{{i}}.safetensors" for i in range({n_layers})}}
transcoders = load_transcoder_set(layers, "{title}", "{HOOKS[0]}", "{HOOKS[1]}")
```

{LICENCE}"""


def neuronpedia_card(
    model: str, title: str, sources: Mapping[str, tuple[int, int]], tokens: int, corpus: str, command: str
) -> str:
    """The README.md beside `v1/`, with the hub's metadata.

    Args:
        model: the language model, by its hub id or short name.
        title: the name of the run.
        sources: each coder's directory → its number of features, and of those that were never used.
        tokens: how many tokens the features were measured on.
        corpus: the text, in words.
        command: the command that made the export.
    """
    rows = "\n".join(f"| `{place}` | {features:,} | {dead:,} |" for place, (features, dead) in sources.items())
    return f"""---
{_metadata(model, ["neuronpedia"], None)}
---

# {title}

The features of sparse autoencoders and transcoders of `{model}`, measured by slms on {tokens:,} tokens of {corpus}, \
in the layout that Neuronpedia's importer reads. Their explanations are empty, and the weights are not here.

| directory | features | never used |
|---|---|---|
{rows}

{how(command, "neuronpedia")}

## Use

Copy `v1/` to the bucket that your Neuronpedia reads (`apps/webapp/lib/utils/s3.ts`), and import MODEL and SOURCE, the \
names of the two directories below it, in its admin panel. Everything belongs to the user that Neuronpedia's own seed \
creates.

{LICENCE}"""


def _metadata(model: str, tags: list[str], library: str | None) -> ModelCardData:
    return ModelCardData(
        library_name=library,
        tags=["slms", "sparse-autoencoder", *tags],
        base_model=model if HUB_ID.fullmatch(model) else None,
    )
