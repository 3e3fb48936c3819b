"""The six kinds of coder: how each picks its latents, computes their activations and penalises them.

Shapes: n tokens, d model (input i, output o), s latents, z picks, k chosen, g prefixes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slms.sae.base import Coder, CoderLosses
from slms.sae.config import CoderConfig
from slms.sae.jump import jump, step
from slms.sae.sparse import Picks, decode, largest_columns


class ReLU(Coder):
    """f = relu(z), penalised by the mean over tokens of Σ_s f, with decoder rows of norm 1 (Bricken et al. 2023)."""

    def pick(self, pre: Tensor) -> Picks:
        """Pick every latent with a positive pre-activation."""
        return Picks.of_flat((pre > 0).view(-1).nonzero()[:, 0], pre.shape)

    def penalty(self, z: Tensor, values: Tensor, picks: Picks) -> Tensor:
        """mean_n Σ_s f."""
        return values.sum() / picks.n_rows


class TopK(Coder):
    """f = relu(z) at the k largest z of each token (Gao et al., arXiv:2406.04093)."""

    def pick(self, pre: Tensor) -> Picks:
        """Pick the k largest of each row; half precision has many ties, and torch's choice among them is SAELens's."""
        half = pre.element_size() < 4
        columns = pre.topk(self.config.k, sorted=False).indices if half else largest_columns(pre, self.config.k)
        return Picks.of_rows(columns, self.d_sae)


class BatchTopK(Coder):
    """f = relu(z) at the n·k largest z of the batch (Bussmann et al., arXiv:2412.06410).

    At inference a latent is used if it exceeds one threshold: the running mean, over training, of each batch's smallest
    value in use. A trainer sets its `memory`, in steps. The paper's 1,000 would give a run of 300 steps a threshold of
    its first steps, and 1.5 latents per token instead of 16. Before a threshold exists, a batch uses its n·k largest.
    """

    threshold: Tensor

    def __init__(self, config: CoderConfig, d_in: int, d_out: int | None = None):
        super().__init__(config, d_in, d_out)
        self.register_buffer("threshold", torch.tensor(-1.0))
        self.memory = 1000

    def pick(self, pre: Tensor) -> Picks:
        """Pick the n·k largest of the matrix, or at inference those above the threshold."""
        if not self.training and self.threshold >= 0:
            flat = (pre > self.threshold).view(-1).nonzero()[:, 0]
        else:
            flat = largest_columns(pre.view(1, -1), self.config.k * len(pre))[0].sort().values
        return Picks.of_flat(flat, pre.shape)

    @torch.no_grad()
    def observe(self, losses: CoderLosses) -> None:
        """Move the threshold towards the smallest positive value in use."""
        positive = losses.values[losses.values > 0]
        if len(positive):
            least = positive.min()
            moved = self.threshold + (least - self.threshold) / self.memory
            self.threshold.copy_(torch.where(self.threshold < 0, least, moved))


class Matryoshka(BatchTopK):
    """BatchTopK whose first m latents also reconstruct alone, for several m (Bussmann et al., arXiv:2503.17547).

    The reconstruction loss is the mean of the errors of these prefixes.
    """

    ends: Tensor

    def __init__(self, config: CoderConfig, d_in: int, d_out: int | None = None):
        super().__init__(config, d_in, d_out)
        ends = [max(round(share * self.d_sae), 1) for share in config.prefixes]
        self.register_buffer("ends", torch.tensor(sorted(set(ends))), persistent=False)

    def errors(self, z: Tensor, values: Tensor, picks: Picks, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean error of the prefixes, and ŷ from all latents."""
        parts = decode(picks.split(self.ends), values, self.W_dec).view(len(x), len(self.ends), -1)
        outputs = self._output(parts.cumsum(1).transpose(0, 1), x)
        return (y - outputs).square().sum(2).mean(), outputs[-1]


class JumpReLU(Coder):
    """f = z·1[z > θ], trained to k latents per token by straight-through estimates (Rajamanoharan et al., 2407.14435).

    The penalty is (L0/k − 1)²; θ [s] learns inside a window of `bandwidth` around itself.
    """

    def __init__(self, config: CoderConfig, d_in: int, d_out: int | None = None):
        super().__init__(config, d_in, d_out)
        self.threshold = nn.Parameter(torch.full((self.d_sae,), config.bandwidth))

    def pick(self, pre: Tensor) -> Picks:
        """Pick latents above their threshold and, while training, those within its window."""
        low = self.threshold - self.config.bandwidth / 2 if self.training else self.threshold
        return Picks.of_flat((pre > low).view(-1).nonzero()[:, 0], pre.shape)

    def activate(self, z: Tensor, at: Tensor) -> Tensor:
        """Return z·1[z > θ]."""
        return jump(z, self.threshold.index_select(0, at), self.config.bandwidth)

    def penalty(self, z: Tensor, values: Tensor, picks: Picks) -> Tensor:
        """Return (L0/k − 1)²."""
        l0 = step(z, self.threshold.index_select(0, picks.indices), self.config.bandwidth).sum() / picks.n_rows
        return (l0 / self.config.k - 1).square()

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale decoder rows to norm 1 and keep thresholds positive."""
        super().after_step()
        self.threshold.clamp_(min=0)


class Gated(Coder):
    """f = 1[π > 0]·relu(exp(r)·a + b_mag), π = a + b_gate, a = (x − b_dec) W_encᵀ (Rajamanoharan et al., 2404.16014).

    The penalty is the mean of Σ relu(π); relu(π) must also reconstruct alone, through a frozen decoder.
    """

    def __init__(self, config: CoderConfig, d_in: int, d_out: int | None = None):
        super().__init__(config, d_in, d_out)
        self.b_gate = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))

    def pick(self, pre: Tensor) -> Picks:
        """Pick latents whose gate is open."""
        return Picks.of_flat((pre + self.b_gate > 0).view(-1).nonzero()[:, 0], pre.shape)

    def activate(self, z: Tensor, at: Tensor) -> Tensor:
        """Return the magnitude if the gate is open, else 0."""
        r_mag, b_mag, b_gate = (p.index_select(0, at) for p in (self.r_mag, self.b_mag, self.b_gate))
        return (z * r_mag.exp() + b_mag).relu() * (z + b_gate > 0)

    def gate(self, z: Tensor, picks: Picks) -> Tensor:
        """Return relu(π) [z]."""
        return (z + self.b_gate.index_select(0, picks.indices)).relu()

    def encode(self, x: Tensor) -> Tensor:
        """Return the activations [n, s] by the definition's two products, rounded as SAELens rounds them."""
        magnitude = (self.project(x, self.r_mag.exp()) + self.b_mag).relu()
        return magnitude * (self.project(x) + self.b_gate > 0)

    def penalty(self, z: Tensor, values: Tensor, picks: Picks) -> Tensor:
        """mean_n Σ_s relu(π)."""
        return self.gate(z, picks).sum() / picks.n_rows

    def revived(self, z: Tensor, at: Tensor) -> Tensor:
        """Return relu(π), because a dead latent is one whose gate stays shut."""
        return (z + self.b_gate.index_select(0, at)).relu()

    def errors(self, z: Tensor, values: Tensor, picks: Picks, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_n ‖y − ŷ‖² + mean_n ‖y − ŷ(relu(π))‖², the second term through a frozen decoder, and ŷ."""
        error, output = super().errors(z, values, picks, x, y)
        frozen = decode(picks, self.gate(z, picks), self.W_dec.detach()) + self.b_dec.detach()
        if self.W_skip is not None:
            frozen = frozen + x @ self.W_skip.detach().T
        return error + (y - frozen).square().sum(1).mean(), output


KINDS: dict[str, type[Coder]] = {
    "relu": ReLU,
    "topk": TopK,
    "batch_topk": BatchTopK,
    "matryoshka": Matryoshka,
    "jump_relu": JumpReLU,
    "gated": Gated,
}


def build_coder(config: CoderConfig, d_in: int, d_out: int | None = None) -> Coder:
    """Build a coder of `config.kind`; with `d_out`, a transcoder."""
    return KINDS[config.kind](config, d_in, d_out)
