"""The graph of features that are used together, and its communities.

Shapes: f features in the graph.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from slms.measure.features import LatentStatistics
from slms.metrics.communities import Modularity, modularity

MOST_IN_GRAPH = 4096  # features; the graph has as many rows and columns
FEWEST_USES = 10  # uses among the sampled tokens that a feature needs to be placed in the graph


class Graph(NamedTuple):
    """The co-activation graph of the features used often enough."""

    found: Modularity
    latents: Tensor
    """int64 [f], the features that are its nodes"""


def communities(reader: LatentStatistics, progress: Callable[[str], None] = lambda step: None) -> Graph | None:
    """Find communities of features that are used together at the sampled tokens; None if too few are used."""
    every = torch.arange(reader.n_latents)
    order = reader.uses.argsort(descending=True, stable=True)[: 2 * MOST_IN_GRAPH]
    activations, documents = reader.sample(every[order])
    often = (activations > 0).sum(0) >= FEWEST_USES
    latents = order[often][:MOST_IN_GRAPH].sort().values
    if len(latents) < 3:
        return None
    column = torch.full([reader.n_latents], -1)
    column[order] = torch.arange(len(order))
    found = modularity(activations[:, column[latents]], documents % 16, progress=progress)
    return Graph(found, latents)
