"""Configurations of routed and cut language models: each family's own with an object ``routing`` or ``cut`` added.

They import quickly; the models, which do not, are in ``routed_lm`` and ``cut_lm``.
"""

from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from slms.models.families import FAMILIES, Family, dense_type


class RoutedConfig:
    """Adds routing to a family's configuration. Making an instance registers its model class."""

    model_type: str

    def __post_init__(self, **kwargs: Any) -> None:
        from slms.models.routed_lm import routed_class  # it takes seconds to import, so only when a model is needed

        routed_class(dense_type(self.model_type))
        super().__post_init__(**kwargs)  # type: ignore[misc]  # of the family's configuration beside it


class CutConfig:
    """Adds the widths of cut MLPs to a family's configuration. Making an instance registers its model class."""

    model_type: str

    def __post_init__(self, **kwargs: Any) -> None:
        from slms.models.cut_lm import cut_class

        cut_class(dense_type(self.model_type))
        super().__post_init__(**kwargs)  # type: ignore[misc]


def _make(kind: str, added: type, field: str, model_type: str, family: Family) -> type[PreTrainedConfig]:
    body = {
        "__module__": __name__,  # pickle looks for the class here
        "__annotations__": {field: "dict | None"},
        "model_type": f"{kind}_{model_type}",
        field: None,
    }
    return type(f"{kind.title()}{family.config}", (added, getattr(transformers, family.config)), body)


CONFIGS = {name: _make("routed", RoutedConfig, "routing", name, family) for name, family in FAMILIES.items()}
"""Family → configuration class of its routed models."""
CUT_CONFIGS = {name: _make("cut", CutConfig, "cut", name, family) for name, family in FAMILIES.items()}
"""Family → configuration class of its cut models."""
globals().update({config.__name__: config for config in (*CONFIGS.values(), *CUT_CONFIGS.values())})


def register() -> None:
    """Let AutoConfig read every routed and cut configuration; this may be repeated."""
    for config in (*CONFIGS.values(), *CUT_CONFIGS.values()):
        AutoConfig.register(config.model_type, config, exist_ok=True)
