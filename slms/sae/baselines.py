"""Coders that are not trained here: those read from a directory, and the baselines that a trained one must beat.

Shapes: n tokens, d width, s latents, k components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slms.models.sites import Site
from slms.sae.base import Coder
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.sparse import Picks
from slms.sae.training_coder import MAX_NORM


class FixedCoder:
    """A coder that reads a model's unscaled activations at its site (see `slms.sae.evaluate.Placed`)."""

    def __init__(self, coder: Coder, source: Site, target: Site, x: Tensor, y: Tensor):
        """Take x [n, i] and y [n, o], a sample of activations that sets the mean and the bound for extreme tokens."""
        self.coder, self.source, self.target = coder.eval(), source, target
        self.mean, self.longest = y.mean(0), MAX_NORM * torch.linalg.vector_norm(x, dim=1).median()

    def latents(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Return the latents in use and their activations."""
        return self.coder.latents(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return ŷ [n, o]."""
        return self.coder.reconstruct(x)


class PCA:
    """Reconstructs y from its mean and first k principal components: the best linear code of k numbers per token.

    For a transcoder this is the best linear map of rank k from x to y (reduced-rank regression).
    """

    def __init__(self, source: Site, target: Site, x: Tensor, y: Tensor, k: int):
        self.source, self.target, self.k = source, target, min(k, y.shape[1], x.shape[1])
        self.mean, self.longest = y.mean(0), MAX_NORM * torch.linalg.vector_norm(x, dim=1).median()
        self.mean_in = x.mean(0)
        centred, wanted = (x - self.mean_in).double(), (y - self.mean).double()
        full = torch.linalg.lstsq(centred, wanted, driver="gelsd").solution  # the identity where y is x
        directions = torch.linalg.svd(centred @ full, full_matrices=False).Vh[: self.k].T
        self.encoder, self.decoder = (full @ directions).to(x.dtype), directions.T.to(x.dtype)

    def latents(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Return all k components with their sizes; a component is in use whatever its sign."""
        values = ((x - self.mean_in) @ self.encoder).abs().flatten()
        every = torch.arange(self.k, device=x.device).expand(len(x), -1)
        return Picks.of_rows(every, self.k), values

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return ŷ [n, o]."""
        return (x - self.mean_in) @ self.encoder @ self.decoder + self.mean


def random_coder(source: Site, target: Site, x: Tensor, y: Tensor, d_sae: int, k: int, seed: int = 0) -> FixedCoder:
    """Return an untrained TopK coder of random unit directions, centred on the data, with one fitted scale."""
    is_transcoder = source != target
    config = CoderConfig(kind="topk", d_sae=d_sae, k=min(k, d_sae), seed=seed)
    coder = build_coder(config, x.shape[1], y.shape[1] if is_transcoder else None).to(x)
    with torch.no_grad():
        coder.b_dec.copy_(y.mean(0))
        if is_transcoder:
            assert coder.b_enc is not None
            coder.b_enc.copy_(-(coder.W_enc @ x.mean(0)))
        ours = coder.reconstruct(x) - y.mean(0)
        # Without one factor on the activations, k overlapping directions overshoot.
        scale = ((y - y.mean(0)) * ours).sum() / ours.square().sum().clamp_min(torch.finfo(ours.dtype).tiny)
        coder.W_dec.mul_(scale)
    return FixedCoder(coder, source, target, x, y)
