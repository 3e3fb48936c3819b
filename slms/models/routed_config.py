"""Configurations of routed language models, which are each family's own with a ``routing`` object added.

They import quickly; the models, which do not, are in ``routed_lm``.
"""

from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from slms.models.families import FAMILIES, Family


class RoutedConfig:
    """Adds routing to a family's configuration. Making an instance registers its model class."""

    model_type: str

    def __post_init__(self, **kwargs: Any) -> None:
        from slms.models.routed_lm import routed_class  # it takes seconds to import, so only when a model is needed

        routed_class(self.model_type.removeprefix("routed_"))
        super().__post_init__(**kwargs)  # type: ignore[misc]  # of the family's configuration beside it


def _make(model_type: str, family: Family) -> type[PreTrainedConfig]:
    name = f"Routed{family.config}"
    body = {
        "__module__": __name__,  # pickle looks for the class here
        "__annotations__": {"routing": "dict | None"},
        "model_type": f"routed_{model_type}",
        "routing": None,
    }
    return type(name, (RoutedConfig, getattr(transformers, family.config)), body)


CONFIGS = {model_type: _make(model_type, family) for model_type, family in FAMILIES.items()}
"""Family → configuration class of its routed models."""
globals().update({config.__name__: config for config in CONFIGS.values()})


def register() -> None:
    """Let AutoConfig read every routed configuration; this may be repeated."""
    for config in CONFIGS.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
