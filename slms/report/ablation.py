"""Causal specialization of pathways or communities of neurons: table and figure.

Shapes: u units, c classes.
"""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from slms.measure.ablation import Ablation, count_units
from slms.measure.rows import Row
from slms.models.place import short_names
from slms.report.heatmap import name_cells
from slms.report.palette import LABEL, TICK, TITLE, new_figure
from slms.report.tables import number, text_table

KINDS = {"pathway": "pathways", "community": "communities of co-active neurons"}
_BY = {"mean": "their means", "zero": "zero"}


def ablation_table(rows: Sequence[Row], found: Sequence[Ablation], by: str) -> str:
    """For the terminal."""
    head = ["place", "class", "units", "classes", "SI-causal", "± 95 %", "null", "z", "random sets"]
    of: Mapping[str, Ablation] = {a.place: a for a in found}
    names = dict(zip(of, short_names(list(of)), strict=True))
    cells = [
        [names[r.place], r.family, str(count_units(of[r.place].unit_of)), str(of[r.place].scores[r.family].n_classes),
         number(r.value), number(r.half), number(r.null_mean), number(r.z, 1), number(r.control)]
        for r in rows
    ]  # fmt: skip
    return "\n".join([
        text_table(head, cells, left=2),
        f"  units: {', '.join(sorted({KINDS[a.kind] for a in found}))}, their activations replaced by {_BY[by]};",
        "  SI-causal: share of the loss increase on a unit's best class, classes weighing alike, minus that under",
        "  permuted labels (null, sd in z); random sets: the same of random neurons in sets of the same sizes",
    ])  # fmt: skip


def ablation_figure(name: str, found: Sequence[Ablation], family: str, labels: Sequence[str]) -> Figure:
    """Unit × class: each unit's loss increase over classes as shares, one panel a place, sorted by best class."""
    totals = found[0].classes[family].totals[0].sum(0)
    shown = [c for c in totals.argsort(descending=True).tolist() if totals[c] >= 60][:24]
    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    panel_width = max(2.6, 0.24 * len(shown))
    panel_height = min(6.0, max(1.8, 0.19 * max(count_units(a.unit_of) for a in found)))
    width, height = 0.9 + columns * (panel_width + 1.05) + 0.6, 1.0 + rows * (panel_height + 0.45) + 0.65
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        rows, columns, left=0.95 / width, right=1 - 1.15 / width, top=1 - 1.0 / height, bottom=1.0 / height,
        wspace=1.05 / panel_width, hspace=0.45 / panel_height,
    )  # fmt: skip
    images = []
    names = short_names([a.place for a in found])
    for i, a in enumerate(found):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        lowest = i + columns >= len(found)
        images.append(_panel(axes, a, family, [labels[c] for c in shown], shown, lowest))
        score = a.scores[family]
        axes.set_title(f"{names[i]}   SI-causal {score.value:.2f} (z {score.z:.0f})", loc="left", fontsize=LABEL)
    bar = figure.colorbar(images[0], cax=figure.add_axes((1 - 0.85 / width, 0.3, 0.16 / width, 0.45)))
    bar.set_label("share of the unit's loss increase", fontsize=LABEL)
    kind = {"pathway": "pathway", "community": "community of neurons"}[found[0].kind]
    heading = f"{name}: what is lost without each {kind}, by '{family}' of the token predicted"
    figure.text(0.25 / width, 1 - 0.33 / height, heading, fontsize=TITLE, fontweight="bold", parse_math=False)
    note = "left: unit and its mean loss increase in nats; ▪: best class"
    figure.text(0.25 / width, 1 - 0.58 / height, note, fontsize=TICK)
    return figure


def _panel(axes: Axes, a: Ablation, family: str, names: list[str], shown: list[int], lowest: bool) -> AxesImage:
    sums, totals = (x[0].sum(0) for x in a.classes[family])
    rise = sums[:, shown] / totals[shown]
    shares = rise.clamp(min=0) / rise.clamp(min=0).sum(1, keepdim=True).clamp(min=1e-12)
    best = shares.argmax(1)
    order = sorted(range(len(shares)), key=lambda u: (int(best[u]), -float(shares[u, best[u]])))
    image = axes.imshow(shares[order], cmap="Blues", vmin=0, vmax=0.5, aspect="auto", interpolation="nearest")
    for y, unit in enumerate(order):
        if not shares[unit].any():
            continue  # nothing is lost without it
        axes.plot(int(best[unit]), y, "s", color="white" if shares[unit, best[unit]] > 0.3 else "black", markersize=2.5)
    whole = sums.sum(1) / totals.sum()
    units = [f"{'p' if a.kind == 'pathway' else 'c'}{u} {float(whole[u]):+.3f}" for u in order]
    name_cells(axes, units, names if lowest else [])
    return image
