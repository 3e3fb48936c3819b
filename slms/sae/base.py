"""The base of every coder: sparse autoencoder, transcoder or skip-transcoder.

A coder writes y ≈ ŷ = b_dec + Σ_i f_i(x) W_dec_i [+ W_skip x]; an autoencoder has y = x. Training runs on the few
latents that `pick` chooses (`slms.sae.sparse`); `encode` and `decode` are the plain dense functions, bit for bit those
of the exported directory. `slms.sae.reference` holds each kind's loss in dense autograd, as the specification.

Shapes: n tokens, d model (input i, output o), s latents, z picks, r dead latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slms.sae.config import CoderConfig
from slms.sae.sparse import Picks, decode, encode

# Small, so that Adam's first steps turn its rows fast and later ones, when they have grown, slowly. TopK, 500 steps:
# FVU .032 against .039 with rows of norm 1 (docs/log.md).
ENCODER_SCALE = 0.1
DECODER_SCALE = 0.03  # where rows may have any norm, for the same reason


class CoderLosses(NamedTuple):
    """One training step's outcome.

    Attributes:
        total: what to differentiate.
        reconstruction: mean over tokens of ‖y − ŷ‖².
        sparsity: the weighted penalty, 0 where k is fixed.
        aux: AuxK before its weight: the share of the residual's variance that dead latents leave; 0 without dead ones.
        output: ŷ [n, d], detached.
        picks: the latents in use, with
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
    """The base: parameters, decoding, the loss; a kind adds how latents are picked and what they are worth.

    Parameters are stored a latent a row: W_enc [s, i], W_dec [s, o], b_enc [s], b_dec [o], W_skip [o, i] or None. An
    autoencoder subtracts b_dec from its input; a transcoder does not.

    W_dec's rows have norm 1 (`unit_norm`), or while training may have any: an activation is then what it would be with
    the norm moved into the encoder, as `slms.sae.export.fold_scale` moves it at the end.
    """

    def __init__(self, config: CoderConfig, d_in: int, d_out: int | None = None):
        super().__init__()
        s, o = config.width(d_in), d_out or d_in
        self.config, self.d_in, self.d_out, self.d_sae = config, d_in, o, s
        self.is_transcoder = d_out is not None
        if config.skip and not self.is_transcoder:
            raise ValueError("coder.skip is true; only a transcoder (a site with a target) has a skip connection")
        generator = torch.Generator().manual_seed(config.seed)
        W = F.normalize(torch.randn(s, o, generator=generator), dim=1)
        self.W_dec = nn.Parameter(W)
        if self.is_transcoder:
            W = F.normalize(torch.randn(s, d_in, generator=generator), dim=1)
        self.W_enc = nn.Parameter(ENCODER_SCALE * W)
        self.b_enc = nn.Parameter(torch.zeros(s)) if config.kind != "gated" else None
        self.b_dec = nn.Parameter(torch.zeros(o))
        self.W_skip = nn.Parameter(torch.zeros(o, d_in)) if config.skip else None
        self.sparsity_share = 1.0  # of config.sparsity; a trainer warms it up
        self.unit_norm = True
        self._scratch: Tensor | None = None

    @property
    def shift(self) -> Tensor | None:
        """What is subtracted from the input."""
        return None if self.is_transcoder else self.b_dec

    @property
    def norms(self) -> Tensor | None:
        """[s] norms of W_dec's rows, without gradient; None where all are 1."""
        return None if self.unit_norm else torch.linalg.vector_norm(self.W_dec.detach(), dim=1)

    def release_norms(self) -> None:
        """Let W_dec's rows have any norm from now on, and start small: as with the encoder's, the first steps turn them
        fast. Only for kinds whose loss sees no activation but through the reconstruction."""
        self.unit_norm = False
        with torch.no_grad():
            self.W_dec.mul_(DECODER_SCALE)

    # --- what a kind defines -----------------------------------------------------------------------------------------

    def pick(self, pre: Tensor) -> Picks:
        """Latents that may carry a gradient, from pre-activations [n, s]; ascending within a row."""
        raise AssertionError("a kind of coder defines pick")

    def activate(self, z: Tensor, at: Tensor) -> Tensor:
        """Activations [z] of picked pre-activations [z] of latents `at` [z]."""
        return z.relu()

    def penalty(self, z: Tensor, values: Tensor, picks: Picks) -> Tensor:
        """The sparsity penalty before its weight."""
        return z.new_zeros(())

    def revived(self, z: Tensor, at: Tensor) -> Tensor:
        """Activations [n, r] that AuxK gives the dead latents `at` [r] for their pre-activations."""
        return z.relu()

    def errors(self, z: Tensor, values: Tensor, picks: Picks, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of reconstruction and ŷ [n, o]."""
        output = self._output(decode(picks, values, self.W_dec), x)
        return (y - output).square().sum(1).mean(), output

    # --- inference ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, x: Tensor) -> tuple[Picks, Tensor]:
        """Latents in use and their activations, of x [n, i] of any type."""
        norms = self.norms
        picks, z = self._picked(x.to(self.W_enc.dtype), norms)
        values = self.activate(z, picks.indices)
        return picks, values if norms is None else values * norms[picks.indices]

    def _picked(self, x: Tensor, norms: Tensor | None) -> tuple[Picks, Tensor]:
        """What is picked and its pre-activations [z], as the parameters give them, W_dec's norms left out."""
        return encode(x, self.shift, self.W_enc, self.b_enc, self.pick, self._workspace(x), norms)

    def encode(self, x: Tensor) -> Tensor:
        """Activations [n, s] of x [n, i], by dense products, differentiable; of a coder with `unit_norm`."""
        assert self.unit_norm, "fold_scale first"
        pre = self.project(x)
        if self.b_enc is not None:
            pre = pre + self.b_enc
        with torch.no_grad():
            picks = self.pick(pre)
        return picks.dense(self.activate(pre.view(-1)[picks.flat], picks.indices))

    def project(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(x − shift) (scale ∘ W_enc)ᵀ, [n, s], with the matrix laid out as a SAELens directory has it.

        The layout decides in which order a product sums, and so its last bits.
        """
        W = self.W_enc if scale is None else self.W_enc * scale[:, None]
        return (x if self.shift is None else x - self.shift) @ W.T.contiguous()

    def decode(self, acts: Tensor) -> Tensor:
        """Σ_s acts_s W_dec_s + b_dec, [n, o], without the skip connection."""
        return acts @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """ŷ [n, o] of x [n, i], by dense products."""
        output = self.decode(self.encode(x))
        return output if self.W_skip is None else output + x @ self.W_skip.T

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """ŷ [n, o] of x [n, i] of any type by sparse products: as `forward`, up to the order of summation."""
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
        """mean_n ‖y − ŷ‖² + sparsity · penalty + aux · AuxK.

        Args:
            x: [n, i].
            y: [n, o], the target; x itself for an autoencoder.
            dead: [s] bool, latents that AuxK revives.
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
        """AuxK (Gao et al., arXiv:2406.04093, appendix A.2): Σ‖e − ê‖² / Σ‖e − ē‖².

        ê is decoded from the k_aux largest activations among the dead latents, without b_dec; e is the residual,
        without gradient. Everything here is dense, over the dead rows only, so encoder and decoder both learn.
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
        """Take from W_dec's gradient what would only change the rows' norms, where they are held at 1."""
        if not self.unit_norm:
            return
        assert self.W_dec.grad is not None, "backward first"
        # By blocks of rows that stay in cache: 11 ms against 26 ms at once (d 512, s 16,384, one core).
        for gradient, rows in zip(self.W_dec.grad.split(256), self.W_dec.split(256), strict=True):
            gradient.addcmul_(rows, (gradient * rows).sum(1, keepdim=True), value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Return W_dec's rows to the unit sphere, where their norms are held at 1."""
        if not self.unit_norm:
            return
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))

    @torch.no_grad()
    def observe(self, losses: CoderLosses) -> None:
        """Learn from a step what is not learned by gradient; nothing, for most kinds."""
