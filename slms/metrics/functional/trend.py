"""Whether a number rises with scale: a slope with its interval, and the verdict that follows from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from slms.metrics.functional.intervals import student_t

FEWEST = 3  # points, because two always lie on a line


class Trend(NamedTuple):
    slope: float
    """least-squares change of y per unit of x"""
    low: float
    """lower end of its 95 % interval"""
    high: float
    """upper end"""
    intercept: float
    """y at x = 0"""
    n: int
    """number of points"""

    @property
    def verdict(self) -> str:
        """`rises` if the whole interval is above 0, `falls` if it is below, else `no trend`."""
        if self.n < FEWEST:
            return "too few models"
        return "rises" if self.low > 0 else "falls" if self.high < 0 else "no trend"


def trend(x: Tensor, y: Tensor) -> Trend:
    """Fit a least-squares line through (x, y) [n], with Student's interval of its slope at n − 2 degrees of freedom.

    slope ± t₀.₉₇₅(n − 2) · √(Σ residual² / (n − 2) / Σ (x − x̄)²). Its width comes from the scatter of the models about
    the line, which includes seed, training and measurement. NaN with fewer than three points or a single x.

    >>> found = trend(torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([0.10, 0.21, 0.29, 0.40]))
    >>> round(found.slope, 3), round(found.low, 3), found.verdict
    (0.098, 0.08, 'rises')
    """
    if x.shape != y.shape or x.dim() != 1:
        raise ValueError(f"x is {tuple(x.shape)}, y {tuple(y.shape)}; both must be [points].")
    x, y = x.double(), y.double()
    n, spread = len(x), float((x - x.mean()).square().sum()) if len(x) else 0.0
    if n < FEWEST or spread == 0:
        return Trend(torch.nan, torch.nan, torch.nan, torch.nan, n)
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    intercept = float(y.mean() - slope * x.mean())
    residual = float((y - intercept - slope * x).square().sum())
    half = student_t(n - 2) * (residual / (n - 2) / spread) ** 0.5
    return Trend(slope, slope - half, slope + half, intercept, n)
