"""Makes plain tables of at most 100 columns, the same on a screen and in a file, and the text of their cells."""

import math
from collections.abc import Sequence

from slms.measure.metrics import METRICS
from slms.measure.rows import Row
from slms.measure.schema import Compute

WIDTH = 100
INDENT = "  "


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: str = INDENT) -> str:
    """Pad columns to their widest cell, the first `left` flush left, the rest flush right, with a rule under the head.

    >>> print(text_table(["run", "nats"], [["dense", "1.51"], ["routed", "1.5300"]], indent=""))
    run       nats
    ------  ------
    dense     1.51
    routed  1.5300
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [head, rule, *rows]:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """A value for a cell; "–" if it was not measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:z.{digits}f}"


def share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def executed(compute: Compute) -> str:
    """What executes for a token, in words.

    >>> executed(Compute(0.5, 8.0, 4.0, 9.0, 5.0, 0.5, 0.4, head_fraction=0.25))
    '50.0 % of all MLP neurons and 25.0 % of all attention heads'
    """
    heads = "" if compute.head_fraction is None else f" and {share(compute.head_fraction)} of all attention heads"
    return f"{share(compute.active_fraction)} of all MLP neurons{heads}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval for a cell; `n/a` if there is none, as with a single document."""
    if low is None or high is None:
        return ""
    return f"[{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) and math.isfinite(high) else "n/a"


def cell(row: Row) -> str:
    """A row's value as `METRICS` shows it; "–" where it was not measured."""
    return "–" if row.value is None else METRICS[row.metric].style.format(row.value).replace("%", " %")


def amount(value: float) -> str:
    """A count in at most five characters.

    >>> amount(950), amount(4_915_200), amount(2.6e11)
    ('950', '4.92M', '260G')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
