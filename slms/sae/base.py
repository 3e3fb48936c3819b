"""The base of every coder: sparse autoencoder, transcoder or skip-transcoder.

A coder computes y ≈ ŷ = b_dec + Σ_i f_i(x) W_dec_i [+ W_skip x]; an autoencoder has y = x. Training uses only the few
latents that `pick` chooses (`slms.sae.sparse`). `encode` and `decode` are the plain dense functions and equal those of
the exported directory bit for bit. `slms.sae.reference` specifies each kind's loss in dense autograd.

Shapes: n tokens, d model (input i, output o), s latents, z picks, r dead latents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slms.sae.config import CoderConfig
from slms.sae.sparse import Picks, decode, encode

# Small, so that Adam's first steps turn the rows quickly and later steps, when the rows have grown, slowly. An
# autoencoder with a fixed k starts at norm 1: from small rows, 6 latents a token of 64 dimensions leave FVU .127, not
# .114, and four times as many latents are dead (TopK, stories-1m, 500 steps; docs/log.md). A transcoder is worse from
# norm 1 (FVU .034 for .027), and the decoders of a crosscoder stay alike.
ENCODER_SCALE = 0.1
DECODER_SCALE = 0.03  # used if rows may have any norm


class CoderLosses(NamedTuple):
    """The losses of one training step.

    Attributes:
        total: the scalar to differentiate.
        reconstruction: mean over tokens of ‖y − ŷ‖².
        sparsity: the weighted penalty, 0 for kinds with a fixed k.
        aux: AuxK before its weight, the share of the residual's variance that dead latents leave; 0 if none is dead.
        output: ŷ [n, d], detached.
        picks: the latents in use.
        values: their activations [z], detached.
    """

    total: Tensor
    reconstruction: Tensor
    sparsity: Tensor
    aux: Tensor
    output: Tensor
    picks: Picks
    values: Tensor


class Coder(nn.Module):
    """Holds parameters, decoding and the loss; a subclass defines how latents are picked and activated.

    Each latent is one row of the parameters: W_enc [s, i], W_dec [s, o], b_enc [s], b_dec [o]; W_skip is [o, i] or
    None. An autoencoder subtracts b_dec from its input; a transcoder does not.

    W_dec's rows have norm 1 (`unit_norm`), or any norm while training. An activation is then computed as if the norm
    were part of the encoder, where `slms.sae.export.fold_scale` moves it at the end.
    """

    source_scales: Tensor | None
    """[m], of a crosscoder: the scale of each source relative to their mean, once it is folded in; before that, 1."""

    def __init__(self, config: CoderConfig, d_in: int, d_out: int | None = None):
        super().__init__()
        s, o = config.width(d_in), d_out or d_in
        self.config, self.d_in, self.d_out, self.d_sae = config, d_in, o, s
        self.is_transcoder, self.n_sources = d_out is not None, 1
        if config.skip and not self.is_transcoder:
            raise ValueError("coder.skip is true; only a transcoder (a site with a target) has a skip connection")
        generator = torch.Generator().manual_seed(config.seed or 0)
        W = F.normalize(torch.randn(s, o, generator=generator), dim=1)
        self.W_dec = nn.Parameter(W)
        if self.is_transcoder:
            W = F.normalize(torch.randn(s, d_in, generator=generator), dim=1)
        self.W_enc = nn.Parameter(W.clone() if self.starts_large else ENCODER_SCALE * W)
        self.b_enc = nn.Parameter(torch.zeros(s)) if config.kind != "gated" else None
        self.b_dec = nn.Parameter(torch.zeros(o))
        self.W_skip = nn.Parameter(torch.zeros(o, d_in)) if config.skip else None
        self.register_buffer("source_scales", None)
        self.sparsity_share = 1.0  # of config.sparsity; a trainer warms it up
        self.unit_norm = True
        self.metadata: dict[str, Any] = {}  # of a coder that was read: what `cfg.json` says of its origin
        self._scratch: Tensor | None = None

    @property
    def starts_large(self) -> bool:
        """Whether rows start at norm 1 and biases learn three times as fast: an autoencoder with a fixed k."""
        return self.config.fixed_k and not self.is_transcoder and self.n_sources == 1

    @property
    def shift(self) -> Tensor | None:
        """The vector [i] that is subtracted from the input, or None."""
        return None if self.is_transcoder else self.b_dec

    @property
    def norms(self) -> Tensor | None:
        """Norms [s] of W_dec's rows, of a crosscoder summed over its sources, without gradient; None if all are 1."""
        return None if self.unit_norm else self.source_norms.sum(1)

    @property
    def source_norms(self) -> Tensor:
        """Norms [s, m] of W_dec's rows at each of the m sources, times `source_scales`, without gradient."""
        norms = torch.linalg.vector_norm(self.W_dec.detach().unflatten(1, (self.n_sources, -1)), dim=2)
        return norms if self.source_scales is None else norms * self.source_scales

    def read_sources(self, n_sources: int) -> None:
        """Make this a crosscoder of activations [n, m·e] of m sources side by side (Lindsey et al. 2024).

        Its latents are shared: the encoder sums over the sources and each source has its own decoder, so it is the
        autoencoder of the sources side by side, but for the weight of a latent, which is the sum of its decoders' norms
        over the sources, where an autoencoder has the norm of all. With one source it is that autoencoder.
        """
        if not self.config.fixed_k:
            raise ValueError(
                f"coder.kind is {self.config.kind!r}; a crosscoder's must be topk, batch_topk or matryoshka"
            )
        if self.starts_large and n_sources > 1:
            with torch.no_grad():
                self.W_enc.mul_(ENCODER_SCALE)
        self.n_sources = n_sources
        self.source_scales = torch.ones(n_sources).to(self.W_dec)

    def release_norms(self) -> None:
        """Stop normalising W_dec's rows and, of transcoders and crosscoders, shrink them. Use this only for kinds whose
        loss depends on activations through the reconstruction alone."""
        self.unit_norm = False
        if not self.starts_large:
            with torch.no_grad():
                self.W_dec.mul_(DECODER_SCALE)

    # --- what a kind defines -----------------------------------------------------------------------------------------

    def pick(self, pre: Tensor) -> Picks:
        """Pick the latents that may carry a gradient, from pre-activations [n, s]; they ascend within a row."""
        raise AssertionError("a kind of coder defines pick")

    def activate(self, z: Tensor, at: Tensor) -> Tensor:
        """Return the activations [z] for the picked pre-activations z [z] of the latents `at` [z]."""
        return z.relu()

    def penalty(self, z: Tensor, values: Tensor, picks: Picks) -> Tensor:
        """Return the sparsity penalty before its weight."""
        return z.new_zeros(())

    def revived(self, z: Tensor, at: Tensor) -> Tensor:
        """Return the activations [n, r] that AuxK gives the dead latents `at` [r] for their pre-activations."""
        return z.relu()

    def errors(self, z: Tensor, values: Tensor, picks: Picks, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction loss and ŷ [n, o]."""
        output = self._output(decode(picks, values, self.W_dec), x)
        return (y - output).square().sum(1).mean(), output

    # --- inference ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Return the latents in use and their activations, for x [n, i] of any dtype."""
        norms = self.norms
        picks, z = self._picked(x.to(self.W_enc.dtype), norms)
        values = self.activate(z, picks.indices)
        return picks, values if norms is None else values * norms[picks.indices]

    def _picked(self, x: Tensor, norms: Tensor | None) -> tuple[Picks, Tensor]:
        """Return the picks and their pre-activations [z], computed without W_dec's norms."""
        return encode(x, self.shift, self.W_enc, self.b_enc, self.pick, self._workspace(x), norms)

    def encode(self, x: Tensor) -> Tensor:
        """Return the activations [n, s] of x [n, i] by dense, differentiable products."""
        pre = self.project(x)
        if self.b_enc is not None:
            pre = pre + self.b_enc
        if (norms := self.norms) is not None:
            pre = pre * norms
        with torch.no_grad():
            picks = self.pick(pre)
        return picks.dense(self.activate(pre.view(-1)[picks.flat], picks.indices))

    def project(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return (x − shift) (scale ∘ W_enc)ᵀ, [n, s], with the matrix laid out as in a SAELens directory.

        The layout decides the order of summation, and so the last bits.
        """
        W = self.W_enc if scale is None else self.W_enc * scale[:, None]
        return (x if self.shift is None else x - self.shift) @ W.T.contiguous()

    def decode(self, acts: Tensor) -> Tensor:
        """Return Σ_s acts_s W_dec_s + b_dec, [n, o], with W_dec's rows at norm 1, without the skip connection."""
        if (norms := self.norms) is not None:
            acts = acts * (1 / norms)  # SAELens's order of rounding
        return acts @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Return ŷ [n, o] for x [n, i], by dense products."""
        output = self.decode(self.encode(x))
        return output if self.W_skip is None else output + x @ self.W_skip.T

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return ŷ [n, o] for x [n, i] of any dtype by sparse products; `forward` differs only in summation order."""
        x = x.to(self.W_enc.dtype)
        picks, z = self._picked(x, self.norms)
        return self._output(decode(picks, self.activate(z, picks.indices), self.W_dec), x)

    def _output(self, decoded: Tensor, x: Tensor) -> Tensor:
        output = decoded + self.b_dec
        return output if self.W_skip is None else output + x @ self.W_skip.T

    def _workspace(self, x: Tensor) -> Tensor:
        shape = (len(x), self.d_sae)
        if self._scratch is None or self._scratch.shape != shape or self._scratch.dtype != x.dtype:
            self._scratch = x.new_empty(shape)
        return self._scratch

    # --- training ----------------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, dead: Tensor | None = None) -> CoderLosses:
        """Compute mean_n ‖y − ŷ‖² + sparsity · penalty + aux · AuxK.

        Args:
            x: inputs [n, i].
            y: targets [n, o]; x itself for an autoencoder.
            dead: [s] bool, the latents that AuxK revives.
        """
        norms = self.norms
        picks, z = self._picked(x, norms)
        values = self.activate(z, picks.indices)
        reconstruction, output = self.errors(z, values, picks, x, y)
        sparsity = self.config.sparsity * self.sparsity_share * self.penalty(z, values, picks)
        aux = self.aux_k(x, (y - output).detach(), dead, norms)
        total = reconstruction + sparsity + self.config.aux * aux
        activations = values.detach() if norms is None else values.detach() * norms[picks.indices]
        return CoderLosses(
            total, reconstruction.detach(), sparsity.detach(), aux.detach(), output.detach(), picks, activations
        )

    def aux_k(self, x: Tensor, residual: Tensor, dead: Tensor | None, norms: Tensor | None = None) -> Tensor:
        """Compute AuxK (Gao et al., arXiv:2406.04093, appendix A.2): Σ‖e − ê‖² / Σ‖e − ē‖².

        ê is decoded from the k_aux largest activations among the dead latents, without b_dec; e is the residual,
        without gradient. The products are dense over the dead rows, so encoder and decoder both learn.
        """
        if dead is None or self.config.aux == 0:
            return x.new_zeros(())
        rows = dead.nonzero()[:, 0]
        if len(rows) == 0:
            return x.new_zeros(())
        centred = x if self.shift is None else x - self.shift
        bias = None if self.b_enc is None else self.b_enc.index_select(0, rows)
        acts = self.revived(F.linear(centred, self.W_enc.index_select(0, rows), bias), rows)
        k_aux = min(self.config.k_aux or max(self.d_out // 2, 1), len(rows))
        if k_aux < len(rows):
            ranked = acts if norms is None else acts * norms[rows]
            top = ranked.topk(k_aux, dim=1, sorted=False).indices
            acts = torch.zeros_like(acts).scatter(1, top, acts.gather(1, top))
        errors = (residual - acts @ self.W_dec.index_select(0, rows)).square().sum(1).mean()
        variance = (residual - residual.mean(0)).square().sum(1).mean()
        return errors / variance.clamp_min(torch.finfo(variance.dtype).tiny)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """If the norms of W_dec's rows are held at 1, remove the part of its gradient that would only change them."""
        if not self.unit_norm:
            return
        assert self.W_dec.grad is not None, "backward first"
        # Blocks of rows stay in cache: they take 11 ms, against 26 ms all at once (d 512, s 16,384, one core).
        for gradient, rows in zip(self.W_dec.grad.split(256), self.W_dec.split(256), strict=True):
            gradient.addcmul_(rows, (gradient * rows).sum(1, keepdim=True), value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale W_dec's rows back to norm 1, if their norms are held there."""
        if not self.unit_norm:
            return
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))

    @torch.no_grad()
    def observe(self, losses: CoderLosses) -> None:
        """Update what is not learned by gradient; most kinds have nothing of this sort."""
