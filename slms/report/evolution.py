"""Draws `evolution.png`: every metric over training, from the rows of `metrics.csv`."""

from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slms.measure.metrics import METRICS
from slms.models.place import in_order, short_names
from slms.report.metrics_csv import Logged
from slms.report.palette import COLOURS, PAGE, legend_above, look, styled

EVOLUTION_FILE = "evolution.png"


@styled
def evolution_figure(rows: list[Logged]) -> Figure:
    """Draw loss, SI of each family (mean of places), and every metric that has a panel title, with one line per place.

    Runs whose neurons move have a panel of how many did, and runs with a learned budget one of the density. A panel is
    left out if its metric was never logged.
    """
    series: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        series.setdefault((row.stage, row.metric, row.place), {})[row.step] = row.value
    losses = {
        "training": series.get(("train", "loss", "lm"), {}),
        "validation": series.get(("val", "loss", ""), {}),
    }
    si = {metric[3:]: points for (stage, metric, place), points in series.items() if _is_si(stage, metric, place)}
    found = {
        metric.title: lines
        for name, metric in METRICS.items()
        if metric.title and (_varies(lines := _by_place(series, name)) or not metric.if_varies)
    }
    panels = [("Loss (nats per token)", losses)] if any(losses.values()) else []
    panels += [("Specialization index, mean of places (share of H(class))", si)] if si else []
    found["Neurons that changed pathway (share of all)"] = _by_place(series, "moved", "assignment")
    panels += [(title, lines) for title, lines in found.items() if lines]
    if not panels:
        raise ValueError("metrics.csv holds no loss and no pathway metric: there is no evolution to draw")
    columns = min(2, len(panels))
    n_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PAGE, 1.75 * n_rows + 0.2))
    grid = figure.add_gridspec(n_rows, columns)
    for i, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(grid[i // columns, i % columns], sharex=figure.axes[0] if i else None)
        _draw(axes, title, lines, last_row=i + columns >= len(panels))
    return figure


def _is_si(stage: str, metric: str, place: str) -> bool:
    return stage == "val" and metric.startswith("si_") and not place


def _by_place(
    series: dict[tuple[str, str, str], dict[int, float]], metric: str, stage: str = "val"
) -> dict[str, dict[int, float]]:
    found = {place: points for (*key, place), points in series.items() if key == [stage, metric] and place}
    places = in_order(found)
    return {name: found[place] for place, name in zip(places, short_names(places), strict=True)}


def _varies(lines: dict[str, dict[int, float]]) -> bool:
    return any(len(set(points.values())) > 1 for points in lines.values())


def _draw(axes: Axes, title: str, lines: dict[str, dict[int, float]], last_row: bool) -> None:
    lines = {name: points for name, points in lines.items() if points}
    many = len(lines) > len(COLOURS)
    for i, (name, points) in enumerate(lines.items()):
        colour, marker = look(i)
        steps, thin = sorted(points), name == "training"
        marker = "" if len(steps) > 30 else "." if many else marker
        shade = _shade(i, len(lines)) if many else colour
        values, width = [points[step] for step in steps], 0.5 if thin else None
        axes.plot(steps, values, marker=marker, label=name, color=shade, linewidth=width)
    what, _, unit = title.partition(" (")
    axes.set(title=what, xlabel="optimizer step" if last_row else "", ylabel=unit.removesuffix(")"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    legend_above(axes, 7 if max(map(len, lines)) < 5 else 4, [next(iter(lines)), list(lines)[-1]] if many else None)


def _shade(i: int, n: int) -> tuple[float, float, float, float]:
    """The i-th colour of a perceptually even scale, dark to light, for when there are more layers than colours."""
    import matplotlib

    scale: Colormap = matplotlib.colormaps["cividis"]
    return scale(0.9 * i / max(n - 1, 1))
