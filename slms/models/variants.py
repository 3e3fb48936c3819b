"""Makes the classes of changed models (routed, cut) from a family's own, and changes copies of dense models to them."""

from __future__ import annotations

import copy
import sys
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from slms.models.families import FAMILIES, VARIANTS
from slms.models.transformers_internals import forget_renamed_weights


def variant_class(kind: str, mixin: type, family: str) -> type[PreTrainedModel]:
    """Make a family's model class of a kind, such as RoutedLlamaForCausalLM, and register it with the Auto classes.

    The class becomes an attribute of the mixin's module, where pickle looks for it.
    """
    dense = getattr(transformers, FAMILIES[family].model)
    config, name = CONFIG_MAPPING[f"{kind}_{family}"], f"{kind.title()}{dense.__name__}"
    made = type(name, (mixin, dense), {"__module__": mixin.__module__, "config_class": config})
    AutoModelForCausalLM.register(config, made, exist_ok=True)
    setattr(sys.modules[mixin.__module__], name, made)
    return made


def changed_copy(
    model: PreTrainedModel, kind: type[PreTrainedModel], config: type[PreTrainedConfig], **options: Any
) -> PreTrainedModel:
    """Copy a dense model into a class of its family, whose MLPs are still the dense ones; `options` go to its config.

    The classes differ only in how `__init__` builds MLPs. Changing the class of the copy, and of the configuration
    that all its modules share, keeps everything else; a model built anew would lose what was set later.
    """
    copied = copy.deepcopy(model)
    copied.__class__, copied.config.__class__ = kind, config
    for name, value in options.items():
        setattr(copied.config, name, value)
    forget_renamed_weights(copied)
    return copied


def check_dense(model: PreTrainedModel) -> None:
    """Raise ValueError if a model is not a dense one of a known family."""
    name = type(model).__name__
    if model.config.model_type in {f"{kind}_{family}" for kind in VARIANTS for family in FAMILIES}:
        kind = model.config.model_type.partition("_")[0]
        raise ValueError(f"{name} is {kind} already; start from its dense base instead.")
    if name not in {family.model for family in FAMILIES.values()}:
        raise ValueError(f"{name} has no known MLP; the families are {', '.join(FAMILIES)}.")
