"""A coder in training, with its site in the model, the scale of its data, and its dead latents.

Shapes: n tokens, d width (input i, output o), s latents.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from slms.models.sites import Site
from slms.sae.base import CoderLosses
from slms.sae.coders import BatchTopK, build_coder
from slms.sae.config import CoderSpec
from slms.sae.export import fold_scale, fold_sources
from slms.sae.sparse import Picks

MAX_NORM = 10.0  # tokens whose input norm exceeds this many median norms are left out (attention sinks)


class TrainingCoder(nn.Module):
    """A coder with its site, target and data statistics.

    The coder sees inputs and targets scaled to a mean squared distance of 1 from their mean; `folded` returns a coder
    of the unscaled activations.
    """

    scale_in: Tensor
    scale_out: Tensor
    mean: Tensor
    longest: Tensor
    since_fired: Tensor

    def __init__(self, spec: CoderSpec, source: Site, target: Site, x: Tensor, y: Tensor):
        """Initialise from the activations of a chunk, x [n, i] and y [n, o]."""
        super().__init__()
        self.spec, self.source, self.target = spec, source, target
        is_transcoder = source != target
        self.coder = build_coder(spec.coder, x.shape[1], y.shape[1] if is_transcoder else None)
        if source.parts:
            self.coder.read_sources(len(source.parts))
        if spec.coder.fixed_k:
            self.coder.release_norms()
        self.register_buffer("scale_in", _scale(x, source))
        self.register_buffer("scale_out", _scale(y, target))
        self.register_buffer("mean", y.mean(0))
        self.register_buffer("longest", MAX_NORM * torch.linalg.vector_norm(x, dim=1).median())
        self.register_buffer("since_fired", torch.zeros(self.coder.d_sae, dtype=torch.int64))
        with torch.no_grad():
            self.coder.b_dec.copy_(y.mean(0) * self.scale_out if is_transcoder else geometric_median(x * self.scale_in))
            if is_transcoder and self.coder.b_enc is not None:
                # As with an autoencoder's b_dec, the mean input activates no latent at the start.
                self.coder.b_enc.copy_(-(self.coder.W_enc @ (x.mean(0) * self.scale_in)))
        self.to(x.device)

    @property
    def label(self) -> str:
        """The coder's name in logs."""
        return self.spec.label

    def data(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the scaled inputs and targets of a batch; for a pathway, only of tokens that chose it."""
        x, y = batch[self.source.name], batch[self.target.name]
        if self.source.kind == "pathway":
            chosen = x.any(1)
            x, y = x[chosen], y[chosen]
        x = x * self.scale_in
        return x, x if self.source == self.target else y * self.scale_out

    def loss(self, batch: dict[str, Tensor], dead_after: int) -> CoderLosses:
        """Compute the coder's losses; AuxK revives latents unused for `dead_after` tokens."""
        return self.coder.loss(*self.data(batch), self.since_fired >= dead_after)

    @torch.no_grad()
    def observe(self, losses: CoderLosses, sum_ranks: Callable[[Tensor], Tensor], world: int = 1) -> None:
        """Record which latents fired; `sum_ranks` sums a tensor over the ranks."""
        fired = torch.zeros_like(self.since_fired)
        fired[losses.picks.indices[losses.values > 0]] = 1
        self.since_fired += losses.picks.n_rows * world
        self.since_fired[sum_ranks(fired) > 0] = 0
        self.coder.observe(losses)
        if isinstance(self.coder, BatchTopK) and world > 1:
            self.coder.threshold.copy_(sum_ranks(self.coder.threshold) / world)

    @torch.no_grad()
    def latents(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Return the latents in use and their (scaled) activations, for the model's activations x [n, i]."""
        return self.coder.latents(x * self.scale_in)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return ŷ [n, o] in the model's units."""
        return self.coder.reconstruct(x * self.scale_in) / self.scale_out

    def folded(self):
        """Return the coder of the model's unscaled activations."""
        if self.source.parts:
            return fold_sources(self.coder, self.scale_in)
        return fold_scale(self.coder, self.scale_in.item(), self.scale_out.item())


def _scale(x: Tensor, site: Site) -> Tensor:
    """A factor for x [n, i], or factors [i], the same within each of several sources."""
    if site.parts:
        parts = x.chunk(len(site.parts), dim=1)
        return torch.cat([_scale(part, one).expand(part.shape[1]) for part, one in zip(parts, site.parts, strict=True)])
    return (x - x.mean(0)).square().sum(1).mean().rsqrt()


def geometric_median(x: Tensor, n_rows: int = 32_768, steps: int = 50) -> Tensor:
    """Find the point [d] with the least summed distance to the first `n_rows` rows of x [n, d] (Weiszfeld's method)."""
    x = x[:n_rows]
    centre = x.mean(0)
    for _ in range(steps):
        weights = torch.linalg.vector_norm(x - centre, dim=1).clamp_min(1e-8).reciprocal()
        new = weights @ x / weights.sum()
        if torch.linalg.vector_norm(new - centre) <= 1e-5 * torch.linalg.vector_norm(centre):
            return new
        centre = new
    return centre
