"""The card of an exported coder: a `README.md` with metadata that the Hugging Face hub and SAELens's users read."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from slms.models.card import HUB_ID, shortened

_TEXT = """---
{data}
---

# {title}

A {kind} of type `{architecture}` at `{hook}` of {models}: {d_in} inputs, {d_sae} latents{skip}. It was trained by
slms on `{corpus}`, in blocks of {context} tokens. The files are {form}:
`cfg.json` says what the coder is, `sae_weights.safetensors` holds its tensors; no code comes with them.

## Use

```python
{opens}import slms

coder = slms.load_coder("path/of/this/directory")
```
"""
_SAELENS = """from sae_lens import SAE

sae = SAE.load_from_disk("path/of/this/directory")  # or, the same in slms:

"""


KINDS = ("crosscoder", "transcoder")


def coder_card(config: Mapping[str, Any], in_saelens: bool) -> str:
    """The card of a coder with the `cfg.json` in `config`.

    Args:
        config: what `cfg.json` holds.
        in_saelens: whether SAELens knows the architecture.

    The language model and the corpus are metadata if they are hub ids; of a path, the text names the end.
    """
    metadata = config["metadata"]
    model, corpus = metadata["model_name"], metadata["dataset_path"]
    is_transcoder = "transcoder" in config["architecture"]
    data = ModelCardData(
        library_name="saelens" if in_saelens else "slms",
        tags=[
            "slms",
            *(["saelens"] if in_saelens else []),
            "sparse-autoencoder",
            *(["transcoder"] if is_transcoder else []),
        ],
        base_model=model if HUB_ID.fullmatch(model) else None,
        datasets=[corpus] if HUB_ID.fullmatch(corpus) else None,
    )
    hook, out = metadata["hook_name"], metadata.get("hook_name_out")
    text = _TEXT.format(
        data=data.to_yaml(),
        form="SAELens's format" if in_saelens else "SAELens's format, but of an architecture that only slms opens",
        opens=_SAELENS if in_saelens else "",
        title=f"{hook} of {shortened(model)}",
        kind=next((kind for kind in KINDS if kind in config["architecture"]), "sparse autoencoder"),
        architecture=config["architecture"],
        hook=hook if out is None else f"{hook} → {out}",
        models=" and ".join(f"`{shortened(name)}`" for name in (model, metadata.get("versus_model_name")) if name),
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        skip=" and a linear skip" if "skip" in config["architecture"] else "",
        corpus=shortened(corpus) or "unknown text",
        context=metadata["context_size"] or "unknown",
    )
    return str(ModelCard(text))
