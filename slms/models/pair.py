"""Two language models that read the same tokens, whose activations one crosscoder compares."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from slms.models.base import Base, open_model
from slms.models.routed import routed_modules


class Pair(nn.Module):
    """A base and a second model, called `routed` if any of its MLPs is, else `versus`; neither is changed."""

    def __init__(self, base: PreTrainedModel, second: PreTrainedModel):
        super().__init__()
        self.models = nn.ModuleDict({"base": base, "routed" if routed_modules(second) else "versus": second})

    def __getitem__(self, of: str) -> PreTrainedModel:
        """Return the model called `of`."""
        return cast(PreTrainedModel, self.models[of])

    @property
    def names(self) -> list[str]:
        """What the models are called, the base first."""
        return list(self.models)


Models = PreTrainedModel | Pair


def models_of(lm: Models) -> dict[str, PreTrainedModel]:
    """Return the models of a pair by name, or one model under the empty name."""
    return {name: lm[name] for name in lm.names} if isinstance(lm, Pair) else {"": lm}


def open_pair(base: Base, second: str, option: str) -> Pair:
    """Join a base with a second model, by a name that `slms.models.base.open_model` knows.

    Raises:
        ValueError: the second model cannot be opened, or its tokens are not the base's; `option` is what named it.
    """
    try:
        net, tokenizer = open_model(second, option)
    except (ValueError, OSError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(said if said.startswith(option) else f"{option} {second}: {said}") from None
    ours, theirs = base.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs:
        raise ValueError(
            f"{option} {second}: its vocabulary of {len(theirs):,} tokens is not the base's ({len(ours):,} tokens); "
            "both models must read the same tokens"
        )
    return Pair(base.model, net)
