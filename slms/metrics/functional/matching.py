"""Biases that give a control's choices the loads of a trained router. Shapes: n tokens, p pathways."""

import torch
from torch import Tensor

TOLERANCE = 0.005
"""Relative error of the worst load at which the search for biases ends; `load_error` tells what was reached."""
STEPS = 40
_DAMPING = 0.7  # of a step that all pathways take at once; 1 overshoots, because they take tokens from each other
_FIRST = 2048  # tokens on which the search starts


def matched_bias(scores: Tensor, loads: Tensor, k: int | None, steps: int = STEPS) -> Tensor:
    """The bias [p] with which pathway p is chosen by loads[p] of the n tokens.

    With k, each token chooses the k largest `scores + bias`; loads then sum to n·k. The right biases are the prices of
    a transportation problem. Each step moves every bias part of the way to where its own load would be right if the
    others stayed; a tenth of the tokens finds them roughly, all tokens exactly. Without k, a token chooses every
    pathway with `scores + bias` ≥ 0, and the bias is a quantile.

    A pathway that no token chooses gets −∞, one that all choose +∞.

    Args:
        scores: [n, p]; loads: int64 [p], between 0 and n.
        steps: the most that the search takes; fewer give rougher loads.
    """
    n = len(scores)
    if scores.dim() != 2 or loads.shape != scores.shape[1:] or int(loads.min()) < 0 or int(loads.max()) > n:
        raise ValueError(f"scores is {tuple(scores.shape)}, loads {loads.tolist()}; loads must be [p], from 0 to {n}.")
    if k is not None and int(loads.sum()) != n * k:
        raise ValueError(f"loads sum to {int(loads.sum())}; with k {k} and {n} tokens they must sum to {n * k}.")
    bias = torch.where(loads == 0, -torch.inf, torch.where(loads == n, torch.inf, 0.0)).to(scores)
    free = (loads > 0) & (loads < n)
    if free.any():
        own, wanted = scores[:, free], loads[free]
        if k is None:
            bias[free] = -_largest(own, wanted)
        else:
            bias[free] = _prices(own, wanted, k - int((loads == n).sum()), steps)
    return bias


def matched_choice(scores: Tensor, bias: Tensor, k: int | None) -> Tensor:
    """Which pathways the tokens choose, bool [n, p], with a bias from `matched_bias`; of equal scores the leftmost."""
    ranked = scores + bias
    if k is None:
        return ranked >= 0
    best = ranked.topk(k, dim=1).indices
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, best, True)


def load_error(chosen: Tensor, loads: Tensor) -> float:
    """The largest relative error of the loads of choices [n, p] against the wanted ones [p]; one token is no error."""
    apart = (chosen.sum(0) - loads).abs()
    return float((apart * (apart > 1) / loads.clamp(min=1)).max())


def _prices(scores: Tensor, loads: Tensor, k: int, steps: int) -> Tensor:
    bias, n = torch.zeros(scores.shape[1], dtype=scores.dtype, device=scores.device), len(scores)
    if n > 2 * _FIRST:
        every = n // _FIRST
        few = scores[::every]
        bias = _ascend(few, (loads * len(few) / n).round().long().clamp(1, len(few) - 1), k, bias, steps)
    return _ascend(scores, loads, k, bias, steps)


def _ascend(scores: Tensor, loads: Tensor, k: int, bias: Tensor, steps: int) -> Tensor:
    best, least = bias, torch.inf
    for _ in range(steps):
        ranked = scores + bias
        top = ranked.topk(k + 1, dim=1).values
        last, next_ = top[:, k - 1 : k], top[:, k:]
        chosen = ranked >= last
        error = load_error(chosen, loads)
        if error < least:
            best, least = bias, error
        if error < TOLERANCE:
            break
        margin = ranked - torch.where(chosen, next_, last)  # to the k-th of the others
        bias = bias - _DAMPING * _largest(margin, loads)
        bias = bias - bias.mean()
    return best


def _largest(x: Tensor, ranks: Tensor) -> Tensor:
    """The ranks[p]-th largest value [p] of each column of x [n, p]."""
    columns = x.T.contiguous()
    at = (len(x) + 1 - ranks).tolist()
    return torch.stack([column.kthvalue(rank).values for column, rank in zip(columns, at, strict=True)])
