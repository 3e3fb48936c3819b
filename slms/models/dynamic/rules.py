"""Rules that choose what a dense MLP executes for a token, from statistics of calibration tokens and without training.

Every rule runs in two ways. `masked` computes everything and then leaves out what was not chosen; it measures quality
and saves nothing. `forward` executes. For a few tokens it reads only the chosen neurons (or inputs). For many tokens,
per-token sets would read all weights anyway, so the dense MLP runs unless all tokens share one set.

With μ = E[h] over calibration tokens, y = b_out + μ W_out + Σ_{i kept} (h_i − μ_i) W_out_i. A skipped neuron thus
contributes its mean, which is folded into the bias at no cost (like SCAP's mode-centering, arXiv:2412.07174).
Comparisons with thresholds keep NaN, because it must reach the output.

Shapes: b blocks, t position, d model, f neurons, q rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.neurons import can_skip, sums
from slms.models.dynamic.mlp import DynamicMLP, Kept
from slms.models.dynamic.predictor import fit_low_rank
from slms.models.weights import MLPWeights, neurons


class Oracle(DynamicMLP):
    """Keeps the k neurons of largest |h − μ|·‖w_out‖; the up-projection is dense, only the down-projection skips."""

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return largest(self.importance(h), self.k)

    def importance(self, h: Tensor) -> Tensor:
        """Return how much each neuron adds to the output, ‖(h_i − μ_i) w_out_i‖."""
        return (h - self.mean).abs() * self.out_norm

    def skipping(self, x: Tensor) -> Tensor:
        h = neurons(self.weights, x)
        return self._down(h, self.keep(x, h))

    def flops(self, kept: Kept) -> float:
        return self._size() * ((2 if self.gated else 1) + kept.neurons)


class CETT(Oracle):
    """Keeps neurons with ‖(h_i − μ_i) w_out_i‖ above a layer's threshold (CETT, arXiv:2402.03804); k varies."""

    def fit(self, x: Tensor, h: Tensor) -> None:
        self.sample = sampled(self.importance(h))

    def set(self, density: float) -> None:
        self.threshold = threshold_at(self.sample, density)

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return ~(self.importance(h) < self.threshold)


class CATS(DynamicMLP):
    """Keeps neurons with |act(gate)| above a threshold (CATS, arXiv:2404.08763); the gate is dense, the rest skips."""

    def fit(self, x: Tensor, h: Tensor) -> None:
        if not self.gated:
            raise ValueError("`rule` is cats; it needs a gated MLP (Llama, Mistral, Qwen, Gemma).")
        self.sample = sampled(self._gate(x).abs())

    def set(self, density: float) -> None:
        self.threshold = threshold_at(self.sample, density)

    def _gate(self, x: Tensor) -> Tensor:
        assert self.weights.W_gate is not None, "checked by fit"
        return self.act(F.linear(x, self.weights.W_gate, self.weights.b_gate))

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return ~(self._gate(x).abs() < self.threshold)

    def skipping(self, x: Tensor) -> Tensor:
        gate = self._gate(x)
        keep = ~(gate.abs() < self.threshold)
        return self._down(gate * self._up(x, keep), keep)

    def flops(self, kept: Kept) -> float:
        return self._size() * (1 + 2 * kept.neurons)


class TEAL(DynamicMLP):
    """Keeps inputs of the up- and down-projection that differ from their means by a threshold (TEAL, arXiv:2408.14690).

    Skipping an input skips a column of W_in, so a second, transposed copy of W_in (and W_gate) is kept.
    """

    def fit(self, x: Tensor, h: Tensor) -> None:
        w = self.weights
        self.x_mean = x.mean((0, 1)) * self.centre
        self.x_sample, self.h_sample = sampled((x - self.x_mean).abs()), sampled((h - self.mean).abs())
        self.W_in_t = w.W_in.t().contiguous()
        self.in_constant = F.linear(self.x_mean, w.W_in, w.b_in)
        if w.W_gate is not None:
            self.W_gate_t = w.W_gate.t().contiguous()
            self.gate_constant = F.linear(self.x_mean, w.W_gate, w.b_gate)

    def set(self, density: float) -> None:
        self.x_threshold = threshold_at(self.x_sample, density)
        self.h_threshold = threshold_at(self.h_sample, density)

    def _hidden(self, x: Tensor, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x = x - self.x_mean
        keep_x = ~(x.abs() < self.x_threshold)
        u = product(x, self.W_in_t, keep_x) + self.in_constant
        h = self.act(product(x, self.W_gate_t, keep_x) + self.gate_constant) * u if self.gated else self.act(u)
        h = h - self.mean
        return h, keep_x, ~(h.abs() < self.h_threshold)

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return self._hidden(x, _masked_product)[2]

    def masked(self, x: Tensor) -> Tensor:
        h, keep_x, keep_h = self._hidden(x, _masked_product)
        self._observed(Kept(keep_x.float().mean().item(), keep_h.float().mean().item()))
        return (h * keep_h) @ self.weights.W_out + self.constant

    def skipping(self, x: Tensor) -> Tensor:
        h, _, keep_h = self._hidden(x, sums)
        return sums(h, self.weights.W_out, keep_h) + self.constant

    def flops(self, kept: Kept) -> float:
        return self._size() * ((2 if self.gated else 1) * kept.inputs + kept.neurons)


def _masked_product(x: Tensor, W: Tensor, keep: Tensor) -> Tensor:
    return (x * keep) @ W


class LowRank(Oracle):
    """Keeps the k neurons that a low-rank predictor expects to matter most (Deja Vu, arXiv:2310.17157); all else skips.

    Reduced-rank regression on calibration tokens, in closed form, predicts the pre-activations; the importance of
    `oracle` is computed from the predicted activations.
    """

    def fit(self, x: Tensor, h: Tensor) -> None:
        w = self.weights
        W = w.W_in if w.W_gate is None else torch.cat([w.W_in, w.W_gate])
        self.rank = max(1, self.d // 8)
        self.narrow, self.wide, self.shift = fit_low_rank(W, x.reshape(-1, self.d), self.rank)
        biases = [b if b is not None else w.W_in.new_zeros(self.f) for b in (w.b_in, w.b_gate)[: 1 + self.gated]]
        self.shift = self.shift + torch.cat(biases)

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        u = F.linear(F.linear(x, self.narrow), self.wide, self.shift)
        predicted = self.act(u[..., self.f :]) * u[..., : self.f] if self.gated else self.act(u)
        return largest(self.importance(predicted), self.k)

    def skipping(self, x: Tensor) -> Tensor:
        keep = self.keep(x, x)
        return self._down(self._chosen(x, keep), keep)

    def flops(self, kept: Kept) -> float:
        matrices = 3 if self.gated else 2
        return self._size() * matrices * kept.neurons + 2 * self.rank * (self.d + (matrices - 1) * self.f)


class Static(Oracle):
    """The control: keeps the same k neurons for every token, those of largest E[importance²] on calibration tokens."""

    per_token = False

    def fit(self, x: Tensor, h: Tensor) -> None:
        self.score = self.importance(h).square().mean((0, 1))

    def set(self, density: float) -> None:
        self.hold(largest(self.score, self.k))

    def hold(self, chosen: Tensor) -> None:
        """Copy out the neurons [f] bool that every token executes from now on."""
        self.chosen, self.compact = chosen, compacted(self.weights, chosen)
        self.rest = self.constant - self.mean[chosen] @ self.compact.W_out

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        return self.chosen.expand(*x.shape[:-1], self.f)

    def skipping(self, x: Tensor) -> Tensor:
        return torch.addmm(self.rest, neurons(self.compact, x), self.compact.W_out)

    def flops(self, kept: Kept) -> float:
        return self._size() * (3 if self.gated else 2) * kept.neurons


class GRIFFIN(Static):
    """Keeps the k neurons that a prompt used most (GRIFFIN, arXiv:2404.01365): a dense prompt, then one set a sequence.

    The statistic is the ℓ2 norm over the prompt of a neuron's share of the token's activation, ‖h_ti / ‖h_t‖‖. While
    masking, the first half of each block is the prompt. When executing, a call with several positions is a prompt, and
    calls with one position use its set.
    """

    def fit(self, x: Tensor, h: Tensor) -> None:
        self.sets: Tensor | None = None

    def set(self, density: float) -> None:
        self.sets = None

    def prompt_set(self, h: Tensor) -> Tensor:
        """Return the neurons [b, 1, f] bool to keep after prompts with activations h [b, t, f]."""
        share = F.normalize(h - self.mean, dim=-1)
        return largest(share.square().sum(1, keepdim=True), self.k)

    def keep(self, x: Tensor, h: Tensor) -> Tensor:
        half = x.shape[1] // 2
        prompt = torch.ones_like(h[:, :half], dtype=torch.bool)
        return torch.cat([prompt, self.prompt_set(h[:, :half]).expand_as(h[:, half:])], 1)

    def masked(self, x: Tensor) -> Tensor:
        h, half = neurons(self.weights, x), x.shape[1] // 2
        keep = self.keep(x, h)
        self._observed(Kept(1.0, keep[:, half:].float().mean().item()))  # the prompt is dense by definition
        return ((h - self.mean) * keep) @ self.weights.W_out + self.constant

    def forward(self, x: Tensor) -> Tensor:
        if self.masking:
            return self.masked(x)
        if x.shape[1] > 1:
            return self._prefill(x)
        if self.sets is None or len(self.sets) != len(x):
            return self.dense(x)
        if len(x) == 1:
            return self.skipping(x[0]).view(x.shape)
        if not can_skip(x, len(x)):
            return self.dense(x)
        keep, x_flat = self.sets[:, 0], x[:, 0]
        return self._down(self._chosen(x_flat, keep), keep).view(x.shape)

    def _prefill(self, x: Tensor) -> Tensor:
        h = neurons(self.weights, x)
        self.sets = self.prompt_set(h)
        if len(x) == 1:  # of one sequence, the neurons are copied out once; later tokens run a smaller MLP
            self.hold(self.sets[0, 0])
        return F.linear(h, self.weights.W_out.t(), self.weights.b_out)


def compacted(weights: MLPWeights, chosen: Tensor) -> MLPWeights:
    """Return the MLP of only the chosen neurons [f], with copies of their rows."""

    def rows(w: Tensor | None) -> Tensor | None:
        return None if w is None else w[chosen]

    return MLPWeights(
        W_in=weights.W_in[chosen],
        W_out=weights.W_out[chosen],
        b_in=rows(weights.b_in),
        b_out=weights.b_out,
        W_gate=rows(weights.W_gate),
        b_gate=rows(weights.b_gate),
        activation=weights.activation,
    )


def largest(scores: Tensor, k: int) -> Tensor:
    """Choose the k largest of each row, as a bool mask; NaN counts as largest, so that it is kept and not hidden."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(k, sorted=False).indices, True)


def sampled(values: Tensor, size: int = 2**20) -> Tensor:
    """Return at most `size` of the values, evenly spread and sorted, which gives quantiles to three digits."""
    flat = values.flatten()
    return flat[:: -(-len(flat) // size)].float().sort().values


def threshold_at(ordered: Tensor, density: float) -> float:
    """Return the value that a share `density` of the ordered values reaches; −∞ at 1, so that nothing is left out."""
    if density == 1.0:
        return float("-inf")
    return ordered[min(len(ordered) - 1, round((1 - density) * len(ordered)))].item()


RULES: dict[str, type[DynamicMLP]] = {
    "oracle": Oracle,
    "cett": CETT,
    "teal": TEAL,
    "cats": CATS,
    "low_rank": LowRank,
    "griffin": GRIFFIN,
    "static": Static,
}
