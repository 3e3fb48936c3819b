"""Whether a number rises with scale: a slope, its interval, the smallest that would be seen, and a verdict."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

FEWEST = 3  # sizes, because two always lie on a line


class Trend(NamedTuple):
    """The slope of a number over x."""

    slope: float
    """change of y per unit of x"""
    low: float
    """lower end of its 95 % interval"""
    high: float
    """upper end"""
    detectable: float
    """the smallest slope that this design finds with a power of 80 %"""
    intercept: float
    """y at x = 0, and at the mean of what is held fixed"""
    n: int
    """number of sizes"""
    given: float = 0.0
    """change of y per unit of what is held fixed"""
    centre: float = 0.0
    """the mean of what is held fixed"""

    @property
    def verdict(self) -> str:
        """`rises` if the whole interval is above 0, `falls` if it is below, else `no trend`."""
        if self.n < FEWEST:
            return "too few sizes"
        return "rises" if self.low > 0 else "falls" if self.high < 0 else "no trend"


def trend(x: Tensor, y: Tensor) -> Trend:
    """Fit a least-squares line through (x, y) [n], with Student's interval of its slope at n − 2 degrees of freedom.

    The slope's standard error is √(Σ residual² / (n − 2) / Σ (x − x̄)²). It comes from the scatter of the models about
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
        return Trend(torch.nan, torch.nan, torch.nan, torch.nan, torch.nan, n)
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    intercept = float(y.mean() - slope * x.mean())
    residual = float((y - intercept - slope * x).square().sum())
    return _of(slope, (residual / (n - 2) / spread) ** 0.5, intercept, n)


def trend_given(x: Tensor, given: Tensor, y: Tensor, runs: Sequence[str]) -> Trend:
    """Fit y = a + b·x + c·given + size + run + error, where sizes and runs deviate at random, and judge b.

    A size is all points of equal x; a run is the points of one name, which lie at one x. If every size has one run, the
    deviation of runs is left out. Both deviations and the error
    are normal, and their variances are fitted by restricted maximum likelihood (statsmodels' MixedLM). Only sizes tell
    of x, so that b's interval is Student's at (sizes − 2) degrees of freedom, however many runs and points there are.

    Args:
        x: what the slope is over, [n].
        given: what is held fixed, [n]; it varies within runs.
        y: the number, [n].
        runs: the run of each point.
    """
    import pandas as pd
    from statsmodels.regression.mixed_linear_model import MixedLM

    sizes = x.double().unique()
    if len(sizes) < FEWEST:
        return Trend(torch.nan, torch.nan, torch.nan, torch.nan, torch.nan, len(sizes))
    centre = float(x.double().mean()), float(given.double().mean())
    scale = float(y.double().std()) or 1.0  # the optimizer's tolerance is absolute
    table = pd.DataFrame(
        {
            "x": x.double().numpy() - centre[0],
            "given": given.double().numpy() - centre[1],
            "y": y.double().numpy() / scale,
            "size": x.double().numpy(),
            "run": list(runs),
        }
    )
    several = table.groupby("size")["run"].nunique().max() > 1  # else a run deviates as its size does
    of_runs = {"run": "0 + C(run)"} if several else None
    model = MixedLM.from_formula("y ~ x + given", table, groups="size", re_formula="1", vc_formula=of_runs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of 0 lies on the boundary, which it reports several times
        fitted = model.fit(reml=True, method=["lbfgs", "powell"])
    slope, error = float(fitted.params["x"]) * scale, float(fitted.bse["x"]) * scale
    intercept = float(fitted.params["Intercept"]) * scale - slope * centre[0]
    given_slope = float(fitted.params["given"]) * scale
    return _of(slope, error, intercept, len(sizes))._replace(given=given_slope, centre=centre[1])


def _of(slope: float, error: float, intercept: float, n: int) -> Trend:
    half = float(stdtrit(n - 2, 0.975)) * error
    return Trend(slope, slope - half, slope + half, half + float(stdtrit(n - 2, 0.8)) * error, intercept, n)
