"""Sets the thresholds of a routed model's routers to a density on given tokens, as calibration does in conversion.

Shapes: b blocks, t position, n tokens, p pathways.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.models.activations import mlp_inputs
from slms.models.routed import record_routes, routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.routing import GateSelector, PathwayRouter, set_threshold

ROUNDS = 3  # a place's scores depend on what earlier places choose, so thresholds are set again
_ELEMENTS = 2**22  # scores of a place that decide


@torch.inference_mode()
def set_thresholds(model: PreTrainedModel, density: float | None, blocks: Tensor, batch_size: int) -> None:
    """Give every router the threshold at which its place executes the share `density` of its pathways on blocks [b, t].

    density: shared pathways included; None means each place's own k / P, else k becomes the nearest count.
    """
    modules = routed_modules(model, RoutedMLP)
    if density is not None:
        for module in modules.values():
            p, fewest = module.config.n_pathways, module.config.n_shared + 1
            module.k = p if density == 1 else min(max(round(density * p), fewest), max(p - 1, fewest))
    by_gate = [place for place, module in modules.items() if isinstance(module.router, GateSelector)]
    for _ in range(ROUNDS):
        scores: dict[str, list[Tensor]] = {place: [] for place in modules}  # or inputs, of those whose gates choose
        gated = {module.layer_index: place for place, module in modules.items() if place in by_gate}
        for part in blocks.split(batch_size):
            with record_routes(model) as routes, mlp_inputs(model, list(gated)) as inputs:
                model.base_model(part.to(model.device), use_cache=False)
            read = {place: inputs[i] for i, place in gated.items()}
            for place, found in ((place, routes[place]) for place in modules):
                every = -(-blocks.numel() * found.scores.shape[1] // _ELEMENTS)
                scores[place].append(read.get(place, found.scores)[::every])
        for place, module in modules.items():
            if place in by_gate:
                module.set_least(torch.cat(scores[place]))
            if not isinstance(module.router, PathwayRouter):
                continue
            p, shared = module.config.n_pathways, module.config.n_shared
            executed = float(module.k) if density is None else density * p
            set_threshold(module.router, torch.cat(scores[place]), max(executed - shared, 0.0) / (p - shared))
