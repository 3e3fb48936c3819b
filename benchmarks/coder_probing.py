"""k-sparse probing of a text's labels with the latents of a coder, and absorption of a class's latents by others.

A probe tells one class of a family from all others (Gurnee et al., arXiv:2305.01610; SAEBench, Karvonen et al.,
arXiv:2503.09532). The k latents whose mean activation differs most between the class and the rest are chosen on the
training documents, and so is a logistic regression on them, in which the class weighs as much as the rest. The score is
the balanced accuracy on the test documents, (recall of the class + recall of the rest) / 2; chance is .5.

Shapes: n tokens, d width of the site, s latents (or dimensions), k chosen, c classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

KS = (1, 5)
LEAST = 50  # tokens that a class, and the rest, must have in both sets to be probed
RIDGE = 1e-3
SAME_DIRECTION, LARGE_PART = 0.025, 0.4
"""SAEBench's bounds for absorption: a latent's cosine with the probe, and its part of the token's projection."""


class Labelled(NamedTuple):
    """Tokens with what a probe reads of them and their classes."""

    values: Tensor
    """[n, s], latents or dimensions"""
    classes: Tensor
    """[n], −1 if unknown"""

    @property
    def known(self) -> "Labelled":
        """The tokens of known class."""
        kept = self.classes >= 0
        return Labelled(self.values[kept], self.classes[kept])


class Probe(NamedTuple):
    """A logistic regression on some columns: positive where values[:, columns] · weight + bias > 0."""

    columns: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Which tokens are of the class, [n] bool."""
        return values[:, self.columns].double() @ self.weight + self.bias > 0


def probed_classes(train: Labelled, test: Labelled) -> list[int]:
    """The classes that have enough tokens, as has the rest, in both sets."""
    n = int(max(train.classes.max(), test.classes.max())) + 1
    counts = [part.known.classes.bincount(minlength=n) for part in (train, test)]
    return [c for c in range(n) if all(min(int(m[c]), int(m.sum() - m[c])) >= LEAST for m in counts)]


def probing(train: Labelled, test: Labelled, k: int | None) -> float:
    """The mean over classes of the balanced accuracy with k columns, or with all."""
    train, test = train.known, test.known
    differences, scores = mean_differences(train), []
    for c in probed_classes(train, test):
        columns = torch.arange(train.values.shape[1]) if k is None else differences[c].abs().topk(k).indices
        found, wanted = fitted(train.values, train.classes == c, columns)(test.values), test.classes == c
        scores.append((found[wanted].double().mean() + (~found[~wanted]).double().mean()) / 2)
    return torch.stack(scores).mean().item()


def mean_differences(train: Labelled) -> Tensor:
    """Mean of each column over each class less that over the rest of the tokens of known class, [c, s]."""
    train = train.known
    counts = train.classes.bincount()[:, None].double()
    sums = torch.zeros(len(counts), train.values.shape[1], dtype=torch.float64)
    sums.index_add_(0, train.classes, train.values.double())
    rest = (sums.sum(0) - sums) / (counts.sum() - counts).clamp_min(1)
    return sums / counts.clamp_min(1) - rest


def fitted(values: Tensor, is_c: Tensor, columns: Tensor) -> Probe:
    """Fit a probe on some columns, by Newton's method on standardised columns with a ridge penalty.

    The loss is the mean over both classes of the mean log loss in each, plus RIDGE/2 · ‖weight‖².
    """
    x, y = values[:, columns].double(), is_c.double()
    mean, sd = x.mean(0), x.std(0).clamp_min(1e-12)
    x = torch.cat([(x - mean) / sd, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    share = torch.where(is_c, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    ridge = RIDGE * torch.ones(x.shape[1], dtype=x.dtype)
    ridge[-1] = 0

    def loss(w: Tensor) -> Tensor:
        return share @ torch.nn.functional.softplus((1 - 2 * y) * (x @ w)) + (ridge * w.square()).sum() / 2

    w = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(100):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (share * (p - y)) + ridge * w
        if gradient.abs().max() < 1e-9:
            break
        hessian = (x * (share * p * (1 - p))[:, None]).T @ x + torch.diag(ridge + 1e-12)
        step, length = torch.linalg.solve(hessian, gradient), 1.0
        while loss(w - length * step) > loss(w) and length > 1e-6:
            length /= 2
        w = w - length * step
    weight = w[:-1] / sd
    return Probe(columns, weight, w[-1] - weight @ mean)


def site_probes(train: Labelled, test: Labelled) -> dict[int, Probe]:
    """A probe of each class on all dimensions of the site."""
    known, columns = train.known, torch.arange(train.values.shape[1])
    return {c: fitted(known.values, known.classes == c, columns) for c in probed_classes(train, test)}


def absorption(
    probes: dict[int, Probe], x: Tensor, train: Labelled, test: Labelled, W_dec: Tensor, b_dec: Tensor
) -> float:
    """The share of a class's test tokens where its latents are silent and another stands in, mean over classes.

    This is SAEBench's full absorption (after Chanin et al., arXiv:2409.14507) with grammatical classes instead of first
    letters. A class's latents are the five whose mean activation rises most (SAEBench adds latents as long as the
    probe's F1 rises). Counted are the test tokens of the class that its probe on the site finds. At an absorbed one,
    none of the five is active, and the latent with the largest projection on the probe's direction has a cosine of .025
    or more with it and makes up .4 or more of the projection of x − b_dec.

    Args:
        probes: class → its probe on the site's dimensions.
        x: activations [n, d] of the test tokens.
        train, test: latents [n, s] with the classes.
        W_dec: decoder rows [s, d] of norm 1.
        b_dec: [d].
    """
    differences, shares = mean_differences(train), []
    for c, probe in probes.items():
        direction = (probe.weight / probe.weight.norm()).to(W_dec)
        counted = (test.classes == c) & probe(x)
        cosine, acts = W_dec @ direction, test.values[counted]
        projection, largest = (x[counted] - b_dec) @ direction, (acts * cosine).max(1)
        own = differences[c].topk(max(KS)).indices
        absorbed = (acts[:, own] == 0).all(1) & (projection > 0) & (cosine[largest.indices] >= SAME_DIRECTION)
        shares.append((absorbed & (largest.values >= LARGE_PART * projection)).double().mean())
    return torch.stack(shares).mean().item()
