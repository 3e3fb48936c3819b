"""Table and figure of what a routed model loses without its best pathways, or with those of one domain alone."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from slms.measure.rows import Row
from slms.report.palette import COLOURS, GREY, PAGE, caption, legend_above, styled
from slms.report.tables import interval, number, text_table

NAMES = {
    "disabled_nats": ("best pathways disabled", "random of the chosen"),
    "retained_nats": ("pathways of the domain alone", "random subsets"),
    "retained_other_nats": ("pathways of the domain alone", "another domain's"),
    "retained_whole_nats": ("pathways of the domain alone", "all pathways"),
}


def redundancy_table(rows: Sequence[Row]) -> str:
    """The losses as text for the terminal, a table for each metric."""
    tables = []
    for metric, (what, rival) in NAMES.items():
        lines = [
            [
                r.family,
                number(r.value, 4),
                number(r.control, 4),
                "" if r.difference is None else f"{r.difference:+.4f}",
                interval(r.difference_low, r.difference_high, 4),
            ]
            for r in rows
            if r.metric == metric
        ]
        if lines:
            tables.append(text_table([what, "nats/token", rival, "difference", "95 % interval"], lines))
    note = "  control of all and random: the routers' own choice" if rows and rows[0].metric == "disabled_nats" else ""
    return "\n\n".join(tables) + ("\n" + note if note else "")


@styled
def redundancy_figure(name: str, rows: Sequence[Row]) -> Figure:
    """Draw the loss against the number of disabled pathways, and against the share kept, mean over domains."""
    figure = Figure(figsize=(PAGE, 3.4))
    left, right = figure.subplots(1, 2)
    levels = {r.family: r.value for r in rows if r.metric == "disabled_nats" and not r.family[0].isdigit()}
    for kind, colour in zip(("replaced", "fewer"), COLOURS, strict=False):
        mine = [r for r in rows if r.metric == "disabled_nats" and r.family.endswith(kind)]
        count = [int(r.family.split()[0]) for r in mine]
        left.plot(count, [r.value for r in mine], "o-", color=colour, label=f"best, {kind}")
        left.plot(count, [r.control for r in mine], "o:", color=colour, label=f"random of the chosen, {kind}")
    for family, value in levels.items():
        if value is not None:
            left.axhline(value, color=GREY, linewidth=0.6)
            left.annotate(family, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=GREY)
    left.set(xlabel="pathways that a token loses", ylabel="nats per token")
    legend_above(left, 2)
    for metric, colour in zip(("retained_nats", "retained_other_nats", "retained_whole_nats"), COLOURS, strict=False):
        mine = [r for r in rows if r.metric == metric and r.control is not None]
        shares = sorted({float(r.family.rsplit(" ", 1)[1]) for r in mine})
        if metric == "retained_nats":
            right.plot(shares, [_mean(mine, share, "value") for share in shares], "o-", color="black", label="its own")
        right.plot(
            shares, [_mean(mine, share, "control") for share in shares], "o:", color=colour, label=NAMES[metric][1]
        )
    right.set(xlabel="share of the pathways that exist", ylabel="nats per token, mean over domains")
    legend_above(right, 2)
    caption(figure, f"{name}: what is lost without pathways", "left: in every place; right: chosen on other documents")
    return figure


def _mean(rows: Sequence[Row], share: float, field: str) -> float:
    values = [getattr(r, field) for r in rows if float(r.family.rsplit(" ", 1)[1]) == share]
    return sum(values) / len(values)
