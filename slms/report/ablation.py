"""Causal specialization of pathways or communities of neurons: measured, then as rows, table and figure.

Shapes: f neurons, u units, c classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.ablation import ClassSums, Losses, ablate, whole_losses
from slms.measure.passes import batches
from slms.metrics.communities import leiden
from slms.metrics.functional import coactivation
from slms.metrics.functional.causal import CausalScore, causal_specialization
from slms.models.anatomy import find_mlps
from slms.models.routed_mlp import RoutedMLP
from slms.models.sites import Site, read_sites
from slms.report.heatmap import name_cells
from slms.report.palette import LABEL, TICK, TITLE, new_figure
from slms.report.tables import number, text_table

SMALLEST = 4  # neurons; a smaller community is left in place
GRAPH_TOKENS = 4096


class LayerAblation(NamedTuple):
    """What ablating the units of one layer does."""

    layer: int
    kind: str
    """`pathway` or `community`"""
    unit_of: Tensor
    """int64 [f], the unit of each neuron in dense order; −1 for none"""
    classes: dict[str, ClassSums]
    """by family"""
    scores: dict[str, CausalScore]
    """by family"""
    random: dict[str, CausalScore]
    """the same of random sets of neurons of the same sizes; empty where not asked for"""


def units_of(model: PreTrainedModel, blocks: Blocks, layer: int, batch_size: int, seed: int = 0) -> tuple[str, Tensor]:
    """The pathways of a routed MLP, or the co-activation communities of a dense one: kind and unit of each neuron [f].

    Communities are Leiden's on the graph that Q measures, from the first 4,096 tokens of the blocks.
    """
    mlp = find_mlps(model)[layer]
    if isinstance(mlp, RoutedMLP):
        rows = torch.bucketize(torch.arange(len(mlp.permutation)), torch.tensor(mlp.offsets[1:]), right=True)
        return "pathway", rows[mlp.permutation.argsort().cpu()]
    parts, n, name = [], 0, f"neurons.{layer}"
    for batch in batches(blocks, batch_size):
        parts.append(read_sites(model, batch["input_ids"].to(model.device), [Site("neurons", layer)])[name])
        n += len(parts[-1])
        if n >= GRAPH_TOKENS:
            break
    found = leiden(coactivation(torch.cat(parts)[:GRAPH_TOKENS].float().cpu()), seed=seed)
    return "community", torch.where(torch.bincount(found)[found] >= SMALLEST, found, -1)


def n_units(unit_of: Tensor) -> int:
    return int(unit_of.max()) + 1


def measure_ablation(
    model: PreTrainedModel,
    blocks: Blocks,
    units: dict[int, tuple[str, Tensor]],
    families: Sequence[str],
    by: Literal["mean", "zero"] = "mean",
    control: bool = True,
    n_permutations: int = 20,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Losses, list[LayerAblation]]:
    """Ablate every unit of every layer in `units` (layer → kind and unit of each neuron, from `units_of`)."""
    whole = whole_losses(model, blocks, families, n_permutations, batch_size, seed)
    n_classes = {family: len(blocks.label_names[family]) for family in families}
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for layer, (kind, unit_of) in units.items():
        classes = ablate(model, blocks, layer, unit_of, whole, n_classes, by, batch_size, progress)
        random = {}
        if control:
            shuffled = unit_of[torch.randperm(len(unit_of), generator=generator)]
            random = _scores(ablate(model, blocks, layer, shuffled, whole, n_classes, by, batch_size, progress))
        layers.append(LayerAblation(layer, kind, unit_of, classes, _scores(classes), random))
    return whole, layers


def _scores(classes: dict[str, ClassSums]) -> dict[str, CausalScore]:
    return {
        family: causal_specialization(sums[0], totals[0], sums[1:], totals[1:])
        for family, (sums, totals) in classes.items()
    }


class LayerRow(NamedTuple):
    """ablation.csv: one layer and family."""

    layer: int
    kind: str
    family: str
    units: int
    classes: int
    si_causal: float
    low: float
    high: float
    null_mean: float
    null_sd: float
    z: float
    random_sets: float
    random_z: float
    tokens: int


class CellRow(NamedTuple):
    """matrix.csv: one unit and class."""

    layer: int
    unit: int
    neurons: int
    family: str
    label: str
    rise: float
    tokens: int
    best: bool


def layer_rows(layers: Sequence[LayerAblation]) -> list[LayerRow]:
    rows = []
    for a in layers:
        for family, s in a.scores.items():
            random = a.random.get(family)
            control = (math.nan, math.nan) if random is None else (random.value, random.z)
            tokens = int(a.classes[family].totals[0].sum())
            rows.append(
                LayerRow(a.layer, a.kind, family, n_units(a.unit_of), s.n_classes, s.value, s.low, s.high, s.null_mean,
                         s.null_sd, s.z, *control, tokens)
            )  # fmt: skip
    return rows


def cell_rows(layers: Sequence[LayerAblation], label_names: dict[str, tuple[str, ...]]) -> list[CellRow]:
    rows = []
    for a in layers:
        for family, (sums, totals) in a.classes.items():
            tokens, rise = totals[0].sum(0), sums[0].sum(0) / totals[0].sum(0)
            for unit in range(n_units(a.unit_of)):
                best = int(a.scores[family].best[unit])
                size = int((a.unit_of == unit).sum())
                rows += [
                    CellRow(a.layer, unit, size, family, label, float(rise[unit, c]), int(tokens[c]), c == best)
                    for c, label in enumerate(label_names[family])
                    if tokens[c] > 0
                ]
    return rows


def ablation_table(rows: Sequence[LayerRow], by: str) -> str:
    """For the terminal."""
    head = ["layer", "class", "units", "classes", "SI-causal", "± 95 %", "null", "z", "random sets", "z"]
    cells = [
        [f"L{r.layer}", r.family, str(r.units), str(r.classes), number(r.si_causal), number((r.high - r.low) / 2),
         number(r.null_mean), number(r.z, 1), number(r.random_sets), number(r.random_z, 1)]
        for r in rows
    ]  # fmt: skip
    kinds = {"pathway": "pathways", "community": "communities of co-active neurons"}
    return "\n".join([
        text_table(head, cells, left=2),
        f"  units: {', '.join(sorted({kinds[r.kind] for r in rows}))}, their activations replaced by {_OF[by]};",
        "  SI-causal: share of the loss increase on a unit's best class, classes weighing alike, minus that under",
        "  permuted labels (null, sd in z); random sets: the same of random neurons in sets of the same sizes",
    ])  # fmt: skip


_OF = {"mean": "their means", "zero": "zero"}


def ablation_figure(name: str, layers: Sequence[LayerAblation], family: str, labels: tuple[str, ...]) -> Figure:
    """Unit × class: each unit's loss increase over classes as shares, one panel a layer, sorted by best class."""
    totals = layers[0].classes[family].totals[0].sum(0)
    shown = [c for c in totals.argsort(descending=True).tolist() if totals[c] >= 60][:24]
    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    panel_width = max(2.6, 0.24 * len(shown))
    panel_height = min(6.0, max(1.8, 0.19 * max(n_units(a.unit_of) for a in layers)))
    width, height = 0.9 + columns * (panel_width + 1.05) + 0.6, 1.0 + rows * (panel_height + 0.45) + 0.65
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        rows, columns, left=0.95 / width, right=1 - 1.15 / width, top=1 - 1.0 / height, bottom=1.0 / height,
        wspace=1.05 / panel_width, hspace=0.45 / panel_height,
    )  # fmt: skip
    images = []
    for i, a in enumerate(layers):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        lowest = i + columns >= len(layers)
        images.append(_panel(axes, a, family, [labels[c] for c in shown], shown, lowest))
    bar = figure.colorbar(images[0], cax=figure.add_axes((1 - 0.85 / width, 0.3, 0.16 / width, 0.45)))
    bar.set_label("share of the unit's loss increase", fontsize=LABEL)
    kind = {"pathway": "pathway", "community": "community of neurons"}[layers[0].kind]
    heading = f"{name}: what is lost without each {kind}, by '{family}' of the token predicted"
    figure.text(0.25 / width, 1 - 0.33 / height, heading, fontsize=TITLE, fontweight="bold", parse_math=False)
    note = "left: unit and its mean loss increase in nats; ▪: best class"
    figure.text(0.25 / width, 1 - 0.58 / height, note, fontsize=TICK)
    return figure


def _panel(axes: Axes, a: LayerAblation, family: str, names: list[str], shown: list[int], lowest: bool) -> AxesImage:
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
    score = a.scores[family]
    axes.set_title(f"L{a.layer}   SI-causal {score.value:.2f} (z {score.z:.0f})", loc="left", fontsize=LABEL)
    return image
