"""`evolution.png`: every metric over training, from the rows of `metrics.csv`."""

from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slms.measure.metrics import METRICS
from slms.models.place import in_order, short_names
from slms.report.metrics_csv import Logged
from slms.report.palette import COLOURS, TICK, dress, new_figure

EVOLUTION_FILE = "evolution.png"


def evolution_figure(rows: list[Logged]) -> Figure:
    """Loss, SI of each family (mean of places) and, one line a place, every metric that has a title for its panel.

    A panel whose metric was never logged is left out.
    """
    series: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        series.setdefault((row.stage, row.metric, row.place), {})[row.step] = row.value
    losses = {
        "training": series.get(("train", "loss", "lm"), {}),
        "validation": series.get(("val", "loss", ""), {}),
    }
    si = {metric[3:]: points for (stage, metric, place), points in series.items() if _is_si(stage, metric, place)}
    found = {metric.title: _by_place(series, name) for name, metric in METRICS.items() if metric.title}
    panels = [("Loss (nats per token)", losses)] if any(losses.values()) else []
    panels += [("Specialization index (mean of places)", si)] if si else []
    panels += [(title, lines) for title, lines in found.items() if lines]
    if not panels:
        raise ValueError("metrics.csv holds no loss and no pathway metric: there is no evolution to draw")
    columns = min(3, len(panels))
    n_rows = -(-len(panels) // columns)
    width, height = 5.4 * columns, 3.9 * n_rows
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        n_rows, columns, left=0.6 / width, right=1 - 0.2 / width, top=1 - 0.4 / height, bottom=0.55 / height,
        wspace=0.2, hspace=0.34,
    )  # fmt: skip
    for i, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        _draw(axes, title, lines, last_row=i + columns >= len(panels))
    return figure


def _is_si(stage: str, metric: str, place: str) -> bool:
    return stage == "val" and metric.startswith("si_") and not place


def _by_place(series: dict[tuple[str, str, str], dict[int, float]], metric: str) -> dict[str, dict[int, float]]:
    found = {
        place: points for (stage, name, place), points in series.items() if (stage, name) == ("val", metric) and place
    }
    places = in_order(found)
    return {name: found[place] for place, name in zip(places, short_names(places), strict=True)}


def _draw(axes: Axes, title: str, lines: dict[str, dict[int, float]], last_row: bool) -> None:
    lines = {name: points for name, points in lines.items() if points}
    many = len(lines) > len(COLOURS)
    for i, (name, points) in enumerate(lines.items()):
        colour = _shade(i, len(lines)) if many else COLOURS[i]
        steps = sorted(points)
        marker = "o" if len(steps) <= 30 else ""
        axes.plot(steps, [points[step] for step in steps], marker=marker, markersize=4, color=colour, label=name)
    dress(axes, title, x="optimizer step" if last_row else "")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    shown = list(lines) if not many else [next(iter(lines)), list(lines)[-1]]
    handles = [line for line in axes.get_lines() if line.get_label() in shown]
    low, high = axes.get_ylim()
    columns = min(len(shown), 4 if max(map(len, shown)) < 6 else 3)
    axes.set_ylim(low, high + (0.04 + 0.09 * -(-len(shown) // columns)) * (high - low))  # room for the legend
    axes.legend(handles, shown, fontsize=TICK, frameon=False, ncol=columns, loc="upper left", columnspacing=1.2)


def _shade(i: int, n: int) -> tuple[float, float, float, float]:
    """More layers than colours: a perceptually even scale from the first (dark) to the last (light)."""
    import matplotlib

    scale: Colormap = matplotlib.colormaps["cividis"]
    return scale(0.9 * i / max(n - 1, 1))
