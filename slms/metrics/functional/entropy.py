"""Entropy in nats of a distribution known only through counts. Shapes: c classes, ... any leading dimensions."""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["plug_in", "miller_madow", "chao_shen"]


def entropy(counts: Tensor, estimator: Estimator = "chao_shen") -> Tensor:
    """Entropy in nats of the distribution from which `counts` [..., c] was sampled; NaN without any event.

    - `plug_in`: −Σ p̂ ln p̂ with p̂ = counts / n; biased down by about (K − 1) / 2n for K classes.
    - `miller_madow`: plug-in + (K̂ − 1) / 2n, K̂ the classes seen (Miller 1955).
    - `chao_shen`: −Σ Ĉp̂ ln(Ĉp̂) / (1 − (1 − Ĉp̂)ⁿ), Ĉ = 1 − f₁/n the Good–Turing coverage (Chao & Shen 2003, eq. 8).

    Chao–Shen is the default because tokens are undersampled. Bias in nats, mean of 40 samples:

        =====================  =====  ======  ======  =======
        distribution (H)           n  plug-in  Miller  Chao–S.
        =====================  =====  ======  ======  =======
        Zipf, 2048 (5.64)        100   −1.73   −1.39    −.89
        Zipf, 2048 (5.64)         1k    −.62    −.42    −.18
        Zipf, 2048 (5.64)        10k    −.12    −.05    +.07
        Zipf, 50k (7.56)          1k   −1.86   −1.57   −1.17
        Zipf, 50k (7.56)         10k    −.82    −.63    −.37
        Zipf, 50k (7.56)        100k    −.23    −.13    +.06
        uniform, 16 (2.77)       100   −.075   −.000   −.054
        =====================  =====  ======  ======  =======

    >>> round(float(entropy(torch.tensor([500, 500]), "plug_in")), 4)
    0.6931
    """
    counts = counts.double()
    n = counts.sum(-1, keepdim=True)
    p = counts / n
    if estimator == "chao_shen":
        singletons = (counts == 1).sum(-1, keepdim=True).double()
        # If all events were distinct, coverage would be 0; Chao & Shen then count one singleton fewer.
        singletons = torch.where(singletons == n, n - 1, singletons)
        q = (1 - singletons / n) * p
        seen_probability = -torch.expm1(n * torch.log1p(-q))
        terms = torch.where(counts > 0, torch.special.xlogy(q, q) / seen_probability, 0.0)
        value = -terms.sum(-1)
    elif estimator in ("plug_in", "miller_madow"):
        value = -torch.special.xlogy(p, p).sum(-1)
        if estimator == "miller_madow":
            value = value + ((counts > 0).sum(-1) - 1) / (2 * n.squeeze(-1))
    else:
        raise ValueError(f"estimator is {estimator!r}; it must be one of plug_in, miller_madow, chao_shen.")
    return torch.where(n.squeeze(-1) > 0, value, torch.nan)
