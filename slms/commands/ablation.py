"""`eval.py ablation`: which classes of tokens suffer without a pathway or a community of neurons."""

from dataclasses import astuple
from functools import partial
from typing import Literal

import torch

from slms.commands.subject import open_subject, results_of, short_name
from slms.measure.ablation import (
    Cell,
    ablation_rows,
    cells_of,
    count_units,
    measure_ablation,
    units_at,
    whole_losses,
)
from slms.measure.classes import check_families
from slms.measure.rows import COLUMNS
from slms.models.anatomy import find_mlps
from slms.models.place import place_name
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.progress import Progress
from slms.report.ablation import ablation_figure, ablation_table
from slms.report.artifacts import write_csv, write_json
from slms.report.palette import write_figure
from slms.report.provenance import command_line

PERMUTATIONS = 20


def ablation(
    model: str,
    n_tokens: int = 16_384,
    layers: list[int] | None = None,
    families: list[str] | None = None,
    by: Literal["mean", "zero"] = "mean",
    control: bool = True,
    batch_size: int = 16,
    seed: int = 0,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Causal specialization: the loss increase in nats, by class of the predicted token, when a unit is ablated.

    A unit is a pathway of a routed MLP, or a community of co-active neurons in an MLP of a dense model. SI-causal is
    the share of a unit's loss increase that falls on its best class, minus that share under permuted labels, with a
    95 % interval over documents. All classes weigh alike, and one half of the documents chooses the best class while
    the other half gives its share. Each unit is printed and kept as soon as it is measured; if the command is killed,
    give it again and it continues with the next unit.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        n_tokens: tokens to measure on; each unit takes one forward pass over them, or two with the control.
        layers: layer indices; by default the routed layers, or every layer of a dense model.
        families: label families (pos, semantic, token_class, …); by default these three. The figure shows the first.
        by: what replaces a unit's activations: their means, or zero.
        control: also ablate random sets of neurons of the same sizes.
        batch_size: blocks in one forward pass.
        seed: seed of the communities, the permutations and the random sets.
        output_dir: ablation.csv, matrix.csv, ablation.json, ablation.png and .svg go to OUTPUT_DIR/ablation/NAME/TEXT/.
    """
    subject = open_subject(model, n_tokens=n_tokens, **text)
    net, blocks = subject.model, subject.blocks
    known = sorted(find_mlps(net))
    if wrong := [layer for layer in layers or () if layer not in known]:
        raise ValueError(f"--layers {wrong[0]}: the model's MLPs are {known[0]} to {known[-1]}")
    everything = list(routed_modules(net, RoutedMLP)) or [place_name(layer) for layer in known]
    places = everything if layers is None else [place_name(layer) for layer in layers]
    families = ["pos", "semantic", "token_class"] if families is None else families
    if not places or not families:
        raise ValueError(f"--{'families' if places else 'layers'} is empty; it must name at least one")
    check_families(blocks, families=families)
    options = {"by": by, "control": control, "seed": seed, "batch_size": batch_size}
    directory, journal = results_of(subject, output_dir, "ablation", **options, places=places, families=families)
    whole = whole_losses(net, blocks, families, PERMUTATIONS, batch_size, seed, journal)
    nats = float(whole.nll.mean())
    read = f"{model} on {subject.source}: {len(whole.nll):,} predicted tokens"
    print(f"{read}, {nats:.4f} nats/token with nothing ablated", flush=True)
    drawn = {"batch_size": batch_size, "seed": seed}
    units = {
        place: journal.part(f"{place} units", partial(units_at, net, blocks, place, **drawn), **drawn)
        for place in places
    }
    total = sum(count_units(unit_of) for _, unit_of in units.values()) * (2 if control else 1)
    random = torch.Generator().manual_seed(seed) if control else None
    found = []
    with Progress("ablating", total, "unit") as steps:

        def told(name: str, rise: float) -> None:
            steps.update()
            print(f"without {name}: {rise:+.4f} nats/token", flush=True)

        for place, of_place in units.items():
            found.append(
                measure_ablation(net, blocks, place, of_place, whole, families, by, random, batch_size, told, journal)
            )
    rows = ablation_rows(found, seed)
    write_csv(directory / "matrix.csv", Cell._fields, cells_of(found, blocks.label_names))
    write_csv(directory / "ablation.csv", COLUMNS, map(astuple, rows))
    about = {"model": model, **subject.text, "by": by, "seed": seed, "command": command_line()}
    ablated = {a.place: {"kind": a.kind, "units": count_units(a.unit_of)} for a in found}
    write_json(directory / "ablation.json", about | {"nats": nats, "rows": rows, "units": ablated})
    figure = ablation_figure(short_name(model), found, families[0], blocks.label_names[families[0]])
    write_figure(directory / "ablation.png", figure)
    print(ablation_table(rows, found, by))
    print(f"written to {directory}")
