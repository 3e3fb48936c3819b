"""Measures which directions of an MLP's or attention's output a model's predictions depend on.

Shapes: b blocks, t position, n tokens, d model.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.models.calibration import evenly

TOKENS = 4096
_STEP_TOKENS = 512


def sensitivity_roots(
    model: PreTrainedModel, modules: Mapping[int, nn.Module], blocks: Tensor, seed: int = 0
) -> dict[int, Tensor]:
    """For each module a matrix R [d, d] such that ‖v R‖² is how much the predictions mind v added to its output.

    The modules are MLPs or attentions of the model, by layer; the output of an attention is the first it returns.

    R Rᵀ is the Fisher information of the output, E g gᵀ, where g is the gradient of −Σ ln p(y) at one token and y are
    drawn from the model's own predictions; to second order, ½ ‖v R‖² is the KL divergence that v causes, mean over
    tokens. Of n tokens (up to 4,096 of the blocks [b, t]) the estimate is drawn towards a multiple of the identity with
    the weight d / (n + d). The scale is such that R Rᵀ has the trace d, so that ‖v R‖ is comparable with ‖v‖. fp32, on
    the model's device; the model is in evaluation mode meanwhile. Raises ValueError if the model was made in inference
    mode, where nothing has gradients.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError("the model was made in inference mode; `routing.importance` loss needs gradients: use norm.")
    blocks = evenly(blocks, TOKENS)
    device, d = model.device, model.config.hidden_size
    generator = torch.Generator(device).manual_seed(seed)
    information = {i: torch.zeros(d, d, dtype=torch.float64, device=device) for i in modules}
    training = model.training
    model.eval()
    try:
        for batch in blocks.split(max(1, _STEP_TOKENS // blocks.shape[1])):
            for i, g in _gradients(model, modules, batch.to(device), generator).items():
                information[i].addmm_(g.T, g)
    finally:
        model.train(training)
    return {i: _root(F, blocks.numel()) for i, F in information.items()}


def _gradients(
    model: PreTrainedModel, modules: Mapping[int, nn.Module], batch: Tensor, generator: torch.Generator
) -> dict[int, Tensor]:
    """Gradients [n, d] of −Σ ln p(y) by what each module gives, y drawn from the predictions for blocks [b, t]."""
    added = {}
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        batch = batch.clone()  # one made in inference mode could not be used
        for i, module in modules.items():

            def add(_: nn.Module, __: tuple, output: Tensor | tuple, i: int = i) -> Tensor | tuple:
                y, *rest = output if isinstance(output, tuple) else (output,)
                added[i] = torch.zeros_like(y, requires_grad=True)
                return (y + added[i], *rest) if isinstance(output, tuple) else y + added[i]

            stack.callback(module.register_forward_hook(add).remove)
        log_p = model(input_ids=batch, use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)
        drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        found = torch.autograd.grad(-log_p.gather(1, drawn).sum(), list(added.values()))
    return {i: g.double().flatten(0, 1) for i, g in zip(added, found, strict=True)}


def _root(information: Tensor, n: int) -> Tensor:
    d = len(information)
    mean = information.diagonal().mean()
    if not mean > 0:  # nothing depends on this output
        return torch.eye(d, device=information.device)
    eye = torch.eye(d, dtype=information.dtype, device=information.device)
    values, vectors = torch.linalg.eigh((n * information / mean + d * eye) / (n + d))
    return (vectors * values.clamp_min(0).sqrt()).float()
