"""Count tables, which hold all that purity and SI need to know about a corpus, in constant memory.

Shapes: n tokens, g document groups, u units (pathways, neurons), c classes (token ids, labels).
"""

import torch
from torch import Tensor

# One matmul counts many units with few classes (neurons); scattered additions count few units or many classes
# (pathways, token ids). For 16 groups of 20 classes on one core, matmul and scatter take, in ms: 16 units × 2048 tokens
# 2.2 and .3, 256 × 2048 5.8 and 8.0, 1024 × 2048 17 and 45, 4096 × 512 22 and 47.
_MATMUL_UNITS = 64
_MATMUL_CELLS = 512


def joint_counts(
    units: Tensor,
    classes: Tensor,
    n_classes: int,
    groups: Tensor | None = None,
    n_groups: int = 1,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Count how often each unit is on in each class, and how often each class occurs.

    Args:
        units: bool [n, u], whether a unit is on (a pathway chosen) at a token.
        classes: int64 [n], the class of a token; a token with −1 (unknown) is ignored.
        n_classes: number of classes c.
        groups: int64 [n], the document group of a token; None means one group for all.
        n_groups: number of groups g.
        out: (counts, totals) of earlier tokens; the new counts are added to them in place.

    Returns:
        counts int64 [g, u, c] and totals int64 [g, c]. Sums of tables are tables of the union of their tokens.

    >>> counts, totals = joint_counts(torch.tensor([[True, False], [True, True]]), torch.tensor([2, 0]), n_classes=3)
    >>> counts.tolist(), totals.tolist()
    ([[[1, 0, 1], [1, 0, 0]]], [[1, 0, 1]])
    """
    if units.dim() != 2 or units.dtype != torch.bool:
        raise ValueError(f"units is {units.dtype} {tuple(units.shape)}; it must be bool [tokens, units].")
    n, n_units = units.shape
    if classes.shape != (n,):
        raise ValueError(f"classes has shape {tuple(classes.shape)}; it must be [{n}], one for each row of units.")
    if groups is not None and groups.shape != (n,):
        raise ValueError(f"groups has shape {tuple(groups.shape)}; it must be [{n}], one for each row of units.")
    if out is None:
        counts = torch.zeros(n_groups, n_units, n_classes, dtype=torch.int64, device=units.device)
        totals = torch.zeros(n_groups, n_classes, dtype=torch.int64, device=units.device)
    else:
        counts, totals = out
    known = (classes >= 0).long()
    c = classes.clamp(min=0).long()
    g = torch.zeros_like(c) if groups is None else groups.long()
    # Unknown tokens add 0 rather than being filtered out: no host synchronisation on CUDA.
    _check_ids("classes", c, counts.shape[2])
    _check_ids("groups", g, counts.shape[0])
    totals.view(-1).index_add_(0, g * counts.shape[2] + c, known)
    cell = g * counts.shape[2] + c
    if n_units >= _MATMUL_UNITS and totals.numel() <= _MATMUL_CELLS:
        on = units.to(torch.float32) * known[:, None]  # sums of ones: exact in float32 up to 2^24 tokens a call
        member = torch.nn.functional.one_hot(cell, totals.numel()).to(torch.float32)
        table = torch.einsum("nu,nx->ux", on, member).round().long()
        counts += table.unflatten(1, totals.shape).transpose(0, 1)
        return counts, totals
    unit = torch.arange(n_units, device=units.device)
    index = (g[:, None] * n_units + unit) * counts.shape[2] + c[:, None]
    if units.device.type == "cpu":  # few of many are chosen: visiting only those is faster where it costs no sync
        index = index[units & (known[:, None] > 0)]
        counts.view(-1).index_add_(0, index, torch.ones_like(index))
    else:
        counts.view(-1).index_add_(0, index.flatten(), (units.long() * known[:, None]).flatten())
    return counts, totals


def _check_ids(name: str, ids: Tensor, n: int) -> None:
    """Refuse an id past the end, which would be counted in a neighbour's row."""
    if ids.is_cuda:
        torch._assert_async((ids < n).all())  # no host synchronisation
    elif ids.numel() and int(ids.max()) >= n:
        raise ValueError(f"{name} contains {int(ids.max())}; it must be below n_{name} ({n}).")


def joint_choices(units: Tensor) -> Tensor:
    """How often two units of bool [n, u] are on together: int64 [u, u], its diagonal the units' loads."""
    # Sums of ones in float32 are exact up to 2^24 tokens a call; the CPU's int64 matmul is 30× slower.
    on = units.float()
    return torch.einsum("nu,nw->uw", on, on).round().long()
