"""Makes a language model whose MLPs run under a rule and share their weights with the dense model.

Shapes: b blocks, t position, n tokens (b·t), d model.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.anatomy import find_mlps, replace_mlp
from slms.models.calibration import layer_inputs
from slms.models.dynamic.mlp import DynamicMLP
from slms.models.dynamic.rules import RULES
from slms.models.place import place_name
from slms.models.routed import routed_modules
from slms.models.weights import dropout_of, read_mlp
from slms.progress import progress


@torch.no_grad()
def apply_rule(model: PreTrainedModel, rule: str, calibration: Tensor, centre: bool = False) -> PreTrainedModel:
    """Copy a dense model so that every MLP runs under `rule`, at density 1 until you call `set_densities`.

    The copy is for inference. It shares the model's parameters, except matrices that the model stores by columns
    (down-projections, in GPT-2 up-projections): they are copied, because the rules read rows. calibration: token ids
    [b, t]. centre: let what is skipped contribute its calibrated mean, which no paper of these rules does. Raises
    ValueError for an unknown rule, a routed model, or an MLP that the rule does not support.
    """
    if rule not in RULES:
        raise ValueError(f"`rule` is {rule!r}; on a dense model it must be one of {', '.join(RULES)}.")
    if routed_modules(model):
        raise ValueError(f"`rule` is {rule}; it works on dense models, and this one is routed.")
    shared = {id(p): p for p in (*model.parameters(), *model.buffers())}
    dynamic = copy.deepcopy(model, shared).eval()
    mlps = list(find_mlps(model))
    for index, x in progress(layer_inputs(model.eval(), mlps, calibration), f"{rule}: calibrating layer", len(mlps)):
        mlp = find_mlps(model)[index]
        assert dropout_of(mlp) == 0.0 or not dynamic.training
        blocks = rearrange(x, "(b t) d -> b t d", t=calibration.shape[1]).to(next(mlp.parameters()).dtype)
        replace_mlp(dynamic, index, RULES[rule](read_mlp(mlp), blocks, centre))
    return dynamic


def dynamic_mlps(model: nn.Module) -> dict[str, DynamicMLP]:
    """Return the MLPs under a rule by place, in order; empty for other models."""
    mlps = [module for module in model.modules() if isinstance(module, DynamicMLP)]
    return {place_name(layer): mlp for layer, mlp in enumerate(mlps)}


def set_densities(model: nn.Module, densities: dict[str, float] | float) -> None:
    """Set the share of neurons that each MLP under a rule keeps, by place or one for all."""
    for place, mlp in dynamic_mlps(model).items():
        mlp.density = densities[place] if isinstance(densities, dict) else densities


def set_published(model: nn.Module, density: float) -> None:
    """Set the mean share that MLPs under a rule keep, shared out among layers and matrices as the rule's paper does."""
    mlps = list(dynamic_mlps(model).values())
    if mlps:
        type(mlps[0]).spread(mlps, density)


def force_rules(model: nn.Module, forced: bool = True) -> None:
    """Make MLPs under a rule execute it even where dense is faster (`break_even`), or no longer."""
    for mlp in dynamic_mlps(model).values():
        mlp.force(forced)


def run_dense(model: nn.Module) -> list[str]:
    """Return the places whose rule would skip something, but which run dense for a decoded token, as that is faster."""
    return [place for place, mlp in dynamic_mlps(model).items() if mlp.density < 1 and mlp.plan().dense]


@contextmanager
def masking(model: nn.Module, prompt: bool = True, as_executed: bool = False) -> Iterator[None]:
    """While open, MLPs under a rule compute everything and mask, to measure quality at any number of tokens.

    prompt: the first half of each sequence is a prompt, which stays dense under rules that execute prompts dense.
    as_executed: where a decoded token runs dense, nothing is masked.
    """
    mlps = dynamic_mlps(model).values()
    for mlp in mlps:
        mlp.masking, mlp.with_prompt, mlp.as_executed = True, prompt, as_executed
    try:
        yield
    finally:
        for mlp in mlps:
            mlp.masking = mlp.with_prompt = mlp.as_executed = False
