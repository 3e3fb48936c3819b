"""Which implementation runs gate-selected neurons on a GPU: thresholds estimated from bytes and operations.

No GPU has measured them; `benchmarks/gpu.sh` prints the times that would.
"""

import torch

from slms.kernels.backends import GPU_PATHWAYS, GPU_TOKENS, refusal

# Estimate: few tokens run the rows that any of them chose while these are at most this share of all, beyond which
# library products, which read all rows, lose less than the gathering does.
UNION = 0.9
# Estimate: grouped by unit of m neurons, a token moves k · d numbers, d model, to save products of k · m · d,
# and forms its gates again. At an H100's 3.3 TB/s and 600 TFLOP/s that needs a hundred neurons, chosen rarely.
MEMBERS, RARE, MANY = 128, 1 / 3, 512


def size_class(n_tokens: int) -> int:
    """Round to the largest number of tokens for which the choice is the same; when compiled, each is one graph."""
    if n_tokens <= GPU_TOKENS:
        return 1 << max(n_tokens - 1, 0).bit_length()
    return MANY - 1 if n_tokens < MANY else MANY


def gate_refusal(device: str, dtype: torch.dtype, n_units: int) -> str | None:
    """Why Triton's kernels of gate-selected neurons cannot run there, or None if they can."""
    if device != "cuda":
        return f"it needs a CUDA device and x is on {device}"
    return refusal("triton", device, dtype, n_units)


def gpu_plan(limit: int, density: float, gradients: bool, n_units: int, smallest: int) -> tuple[str, str]:
    """The implementation and why, for up to `limit` tokens of a `size_class`; `smallest`: neurons of a unit."""
    union = 1 - (1 - density) ** limit
    if limit >= MANY and smallest >= MEMBERS and density <= RARE and n_units <= GPU_PATHWAYS:
        return "grouped", f"units of {MEMBERS} neurons and more, each run by few tokens, are grouped (an estimate)"
    if gradients:
        return "dense", "rows has no gradient"
    if limit > GPU_TOKENS:
        return "dense", f"more than {GPU_TOKENS} tokens that choose apart need nearly all rows"
    if union > UNION:
        return "dense", f"{limit} tokens need {union:.0%} of the rows; the break-even is estimated at {UNION:.0%}"
    return "rows", "it reads only the chosen rows"
