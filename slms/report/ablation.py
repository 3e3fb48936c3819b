"""Table and figure of the causal specialization of pathways, heads or communities of neurons.

Shapes: u units, c classes.
"""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from slms.measure.causal import Ablation, count_units
from slms.measure.rows import Row
from slms.models.place import short_names
from slms.report.heatmap import image_panels, name_cells
from slms.report.palette import caption, styled
from slms.report.tables import number, text_table

KINDS = {"pathway": "pathways", "head": "query heads", "community": "communities of co-active neurons"}
_ONE = {"pathway": "pathway", "head": "head", "community": "community of neurons"}
_BY = {"mean": "their means", "zero": "zero"}


def detectable_table(rows: Sequence[Row]) -> str:
    """How small a difference to random sets will be seen, by place and family, for the terminal."""
    places, families = list(dict.fromkeys(r.place for r in rows)), list(dict.fromkeys(r.family for r in rows))
    values = {(r.place, r.family): number(r.value) for r in rows}
    cells = [[name, *(values[p, f] for f in families)] for name, p in zip(short_names(places), places, strict=True)]
    note = "smallest SI-causal above random sets that is found with a power of 80 %, told by the random sets alone:"
    return f"{note}\n{text_table(['place', *families], cells)}"


def ablation_table(rows: Sequence[Row], found: Sequence[Ablation], by: str) -> str:
    """SI-causal of every place and family as text for the terminal."""
    head = ["place", "class", "units", "classes", "SI-causal", "± 95 %", "null", "random sets", "− random", "± 95 %"]
    of: Mapping[str, Ablation] = {a.place: a for a in found}
    names = dict(zip(of, short_names(list(of)), strict=True))
    cells = []
    scored = [r for r in rows if r.metric == "si_causal"]
    for r in scored:
        units, classes = count_units(of[r.place].unit_of), of[r.place].scores[r.family].n_classes
        low, high = r.difference_low, r.difference_high
        apart = None if low is None or high is None else (high - low) / 2
        numbers = map(number, (r.value, r.half, r.null_mean, r.control, r.difference, apart))
        cells.append([names[r.place], r.family, str(units), str(classes), *numbers])
    lines = [
        text_table(head, cells, left=2),
        f"  units: {', '.join(sorted({KINDS[a.kind] for a in found}))}, their activations replaced by {_BY[by]};",
        "  SI-causal: share of the loss increase on a unit's best class, classes weighing alike, minus that under",
        "  permuted labels (null); random sets: the same of random neurons, matched in number and total contribution",
    ]
    compared = [r for r in scored if r.difference_low is not None]
    for family in dict.fromkeys(r.family for r in compared):
        mine = [r for r in compared if r.family == family]
        above = [r for r in mine if r.difference_low is not None and r.difference_low > 0]
        lines.append(f"  {family}: above random sets in {len(above)} of {len(mine)} places (the interval excludes 0)")
    return "\n".join(lines)


@styled
def ablation_figure(name: str, found: Sequence[Ablation], family: str, labels: Sequence[str]) -> Figure:
    """Draw unit × class: each unit's loss increase over classes as shares, a panel per place, sorted by best class."""
    totals = found[0].classes[family].totals.sum(0)
    shown = [c for c in totals.argsort(descending=True).tolist() if totals[c] >= 60][:24]
    figure, panels = image_panels(len(found), len(shown), max(count_units(a.unit_of) for a in found), names=0.8)
    images = []
    for axes, a, place in zip(panels, found, short_names([a.place for a in found]), strict=True):
        images.append(_panel(axes, a, family, [labels[c] for c in shown], shown))
        score, control = a.scores[family], a.control.get(family)
        half = f" ± {(score.high - score.low) / 2:.2f}" if math.isfinite(score.high - score.low) else ""
        axes.set_title(f"{place}   {score.value:.2f}{half}" + (f" ({control.value:.2f})" if control else ""))
    figure.colorbar(images[0], ax=panels, aspect=30, label="share of the unit's loss increase")
    kind = " or ".join(_ONE[kind] for kind in dict.fromkeys(a.kind for a in found))
    heading = f"{name}: what is lost without each {kind}, by '{family}' of the token predicted"
    random = " (random sets of neurons)" if any(a.control for a in found) else ""
    note = f"above: SI-causal ± 95 %{random}; left: unit and its mean loss increase in nats; ▪: its best class"
    caption(figure, heading, note)
    return figure


def _panel(axes: Axes, a: Ablation, family: str, names: list[str], shown: list[int]) -> AxesImage:
    sums, totals = a.classes[family].sums.sum(0), a.classes[family].totals.sum(0)
    rise = sums[:, shown] / totals[shown]
    shares = rise.clamp(min=0) / rise.clamp(min=0).sum(1, keepdim=True).clamp(min=1e-12)
    best = shares.argmax(1)
    order = sorted(range(len(shares)), key=lambda u: (int(best[u]), -float(shares[u, best[u]])))
    image = axes.imshow(shares[order].numpy(), cmap="Blues", vmin=0, vmax=0.5)
    for y, unit in enumerate(order):
        if not shares[unit].any():
            continue  # nothing is lost without it
        axes.plot(int(best[unit]), y, "s", color="white" if shares[unit, best[unit]] > 0.3 else "black", markersize=1.5)
    whole = sums.sum(1) / totals.sum()
    name_cells(axes, [f"{a.kind[0]}{u} {float(whole[u]):+.3f}" for u in order], names)
    return image
