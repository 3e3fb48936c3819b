"""Cuts a dense language model down to the best fixed neurons of some layers, the control of a routed one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.anatomy import find_mlps
from slms.models.calibration import layer_inputs
from slms.models.convert import check_tokens, in_fp32
from slms.models.cut_lm import CutMixin, cut_class, cut_mlps
from slms.models.families import family_name
from slms.models.place import place_name
from slms.models.pruning import neuron_moments, refitted, worth_keeping
from slms.models.routed_config import CUT_CONFIGS
from slms.models.speedups import prepare
from slms.models.variants import changed_copy, check_dense
from slms.models.weights import MLPWeights, read_mlp
from slms.progress import progress

logger = logging.getLogger(__name__)


@torch.no_grad()
def cut(model: PreTrainedModel, widths: Mapping[int, int], calibration: Tensor) -> PreTrainedModel:
    """Make a copy of a dense causal language model whose MLPs keep only their best neurons; the model does not change.

    The neurons, and the down-projection refitted to them, lose least of the MLP's output over the calibration tokens
    (`slms.models.pruning`). The copy's MLPs are ordinary dense ones of fewer neurons. With all neurons kept it
    computes what the model does.

    Args:
        widths: layer → neurons to keep, from 1 to all; other layers stay as they are.
        calibration: token ids [b, t], of which up to 65k are used.

    Raises:
        ValueError: model, widths and tokens do not fit together.
    """
    check_dense(model)
    check_tokens(calibration, model)
    made, layers = with_fresh_widths(model, widths)
    for i, x in progress(layer_inputs(model, list(layers), calibration), "cutting layer", len(layers)):
        weights = in_fp32(read_mlp(find_mlps(model)[i]))
        moments = neuron_moments(weights, x)
        kept = worth_keeping(moments.covariance, weights.W_out, widths[i])
        write_mlp(layers[i], refitted(weights, moments, kept))
        logger.info("%s: kept %d of %d neurons", place_name(i), len(kept), len(weights.W_in))
    return made


def with_fresh_widths(
    model: PreTrainedModel, widths: Mapping[int, int]
) -> tuple[PreTrainedModel, dict[int, nn.Module]]:
    """Copy a dense model into its cut class; the cut MLPs, by layer, do not hold the model's weights yet."""
    family = family_name(model.config.model_type)
    names = {place_name(i): width for i, width in sorted(widths.items())}
    made = cast(CutMixin, changed_copy(model, cut_class(family), CUT_CONFIGS[family], cut=names))
    with torch.random.fork_rng(devices=[]):
        layers = cut_mlps(made)
    return prepare(made), layers


def write_mlp(mlp: nn.Module, weights: MLPWeights) -> None:
    """Copy weights into a dense MLP of the same shapes; both must have the same biases."""
    for name, target in read_mlp(mlp)._asdict().items():  # views of its parameters
        source = getattr(weights, name)
        assert (target is None) == (source is None), name
        if isinstance(target, Tensor):
            target.copy_(source)
