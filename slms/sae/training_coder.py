"""A coder in training: its place in the model, the scale of its data, and which of its latents are dead.

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
from slms.sae.export import fold_scale
from slms.sae.sparse import Picks

MAX_NORM = 10.0  # tokens whose input is longer than this many median norms are left out (attention sinks)


class TrainingCoder(nn.Module):
    """A coder with its site, target and data statistics.

    The coder sees inputs and targets scaled to a mean squared distance of 1 from their mean; `folded` gives a coder of
    the model's own activations.
    """

    scale_in: Tensor
    scale_out: Tensor
    mean: Tensor
    longest: Tensor
    since_fired: Tensor

    def __init__(self, spec: CoderSpec, source: Site, target: Site, x: Tensor, y: Tensor):
        """Initialised from the activations of a chunk, x [n, i] and y [n, o]."""
        super().__init__()
        self.spec, self.source, self.target = spec, source, target
        is_transcoder = source != target
        self.coder = build_coder(spec.coder, x.shape[1], y.shape[1] if is_transcoder else None)
        if spec.coder.fixed_k:
            self.coder.release_norms()
        self.register_buffer("scale_in", _scale(x))
        self.register_buffer("scale_out", _scale(y))
        self.register_buffer("mean", y.mean(0))
        self.register_buffer("longest", MAX_NORM * torch.linalg.vector_norm(x, dim=1).median())
        self.register_buffer("since_fired", torch.zeros(self.coder.d_sae, dtype=torch.int64))
        with torch.no_grad():
            self.coder.b_dec.copy_(y.mean(0) * self.scale_out if is_transcoder else geometric_median(x * self.scale_in))
            if is_transcoder and self.coder.b_enc is not None:
                # As an autoencoder's b_dec does: at the start the mean input activates no latent.
                self.coder.b_enc.copy_(-(self.coder.W_enc @ (x.mean(0) * self.scale_in)))
        self.to(x.device)

    @property
    def label(self) -> str:
        """Its name in logs."""
        return self.spec.label

    def data(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scaled inputs and targets of a batch; of a pathway, those tokens that chose it."""
        x, y = batch[self.source.name], batch[self.target.name]
        if self.source.kind == "pathway":
            chosen = x.any(1)
            x, y = x[chosen], y[chosen]
        x = x * self.scale_in
        return x, x if self.source == self.target else y * self.scale_out

    def loss(self, batch: dict[str, Tensor], dead_after: int) -> CoderLosses:
        """The coder's losses; latents unused for `dead_after` tokens are revived."""
        return self.coder.loss(*self.data(batch), self.since_fired >= dead_after)

    @torch.no_grad()
    def observe(self, losses: CoderLosses, sum_ranks: Callable[[Tensor], Tensor], world: int = 1) -> None:
        """Note which latents fired; `sum_ranks` sums a tensor over the ranks."""
        fired = torch.zeros_like(self.since_fired)
        fired[losses.picks.indices[losses.values > 0]] = 1
        self.since_fired += losses.picks.n_rows * world
        self.since_fired[sum_ranks(fired) > 0] = 0
        self.coder.observe(losses)
        if isinstance(self.coder, BatchTopK) and world > 1:
            self.coder.threshold.copy_(sum_ranks(self.coder.threshold) / world)

    @torch.no_grad()
    def features(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Latents in use and their (scaled) activations, of the model's activations x [n, i]."""
        return self.coder.features(x * self.scale_in)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """ŷ [n, o] in the model's units."""
        return self.coder.reconstruct(x * self.scale_in) / self.scale_out

    def folded(self):
        """The coder of the model's own activations."""
        return fold_scale(self.coder, self.scale_in.item(), self.scale_out.item())


def _scale(x: Tensor) -> Tensor:
    return (x - x.mean(0)).square().sum(1).mean().rsqrt()


def geometric_median(x: Tensor, n_rows: int = 32_768, steps: int = 50) -> Tensor:
    """The point [d] whose summed distance to the first `n_rows` rows of x [n, d] is least (Weiszfeld's algorithm)."""
    x = x[:n_rows]
    centre = x.mean(0)
    for _ in range(steps):
        weights = torch.linalg.vector_norm(x - centre, dim=1).clamp_min(1e-8).reciprocal()
        new = weights @ x / weights.sum()
        if torch.linalg.vector_norm(new - centre) <= 1e-5 * torch.linalg.vector_norm(centre):
            return new
        centre = new
    return centre
