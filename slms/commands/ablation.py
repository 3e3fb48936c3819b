"""`eval.py ablation`: which classes of tokens suffer without a pathway, a head or a community of neurons."""

from dataclasses import astuple
from functools import partial
from typing import Literal

import torch

from slms.commands.subject import open_subject, results_of, short_name
from slms.measure.ablation import Ablated, ablate, whole_losses
from slms.measure.causal import (
    Ablation,
    Cell,
    ablation_rows,
    cells_of,
    count_units,
    detectable_rows,
    groups_at,
    unit_sets,
    units_at,
)
from slms.measure.classes import check_families
from slms.measure.random_sets import random_sets, read_neurons
from slms.measure.rows import COLUMNS
from slms.models.anatomy import find_mlps
from slms.models.place import layer_of, place_name
from slms.models.routed import routed_modules
from slms.progress import Progress, duration
from slms.report.ablation import ablation_figure, ablation_table, detectable_table
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
    n_random: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Causal specialization: the loss increase in nats, by class of the predicted token, when a unit is ablated.

    A unit is a pathway of a routed MLP, a query head of a routed attention, or a community of co-active neurons in an
    MLP of a dense model. The neurons of heads are the numbers that they pass to the output projection. SI-causal is
    the share of a unit's loss increase that falls on its best class, minus that share under permuted labels, with a
    95 % interval over documents. All classes weigh alike, and one half of the documents chooses the best class while
    the other half gives its share. Random sets of neurons, each as large as a unit and with the same total contribution
    E|a|·‖w_out‖, are ablated first; those of a head come from the heads with which it competes. They tell how small a
    difference to them will be seen, which is printed before any unit is ablated. Each set is printed and kept as soon
    as it is measured; if the command is killed, give it again and it continues with the next.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        n_tokens: tokens to measure on; each unit and each random set takes the layers from its own on over them.
        layers: layer indices; by default the routed layers, or every layer of a dense model.
        families: label families (pos, semantic, token_class, …); by default these three. The figure shows the first.
        by: what replaces a unit's activations: their means, or zero.
        n_random: random sets a place, each matched to one unit; 0 leaves them out. They are what an interval rests on.
        batch_size: blocks in one forward pass.
        seed: seed of the communities, the permutations and the random sets.
        output_dir: ablation.csv, matrix.csv, ablation.json, ablation.png and .svg go to OUTPUT_DIR/ablation/NAME/TEXT/.
    """
    subject = open_subject(model, n_tokens=n_tokens, **text)
    net, blocks = subject.model, subject.blocks
    known = sorted(find_mlps(net))
    if wrong := [layer for layer in layers or () if layer not in known]:
        raise ValueError(f"--layers {wrong[0]}: the model's MLPs are {known[0]} to {known[-1]}")
    routed = list(routed_modules(net))
    in_layer = {layer: [p for p in routed if layer_of(p) == layer] or [place_name(layer)] for layer in known}
    places = routed or list(map(place_name, known))
    if layers is not None:
        places = [place for layer in layers for place in in_layer[layer]]
    families = ["pos", "semantic", "token_class"] if families is None else families
    if not places or not families:
        raise ValueError(f"--{'families' if places else 'layers'} is empty; it must name at least one")
    check_families(blocks, families=families)
    if n_random < 0 or 0 < n_random < 4:
        raise ValueError(f"--n_random {n_random}: it must be 0 or at least 4")
    options = {"by": by, "n_random": n_random, "seed": seed, "batch_size": batch_size}
    directory, journal = results_of(subject, output_dir, "ablation", **options, places=places, families=families)
    whole = whole_losses(net, blocks, families, PERMUTATIONS, batch_size, seed, journal)
    nats = float(whole.nll.mean())
    read = (
        f"{model} on {subject.source}: {len(whole.nll):,} predicted tokens in {int(whole.document.max()) + 1} documents"
    )
    print(f"{read}, {nats:.4f} nats/token with nothing ablated", flush=True)
    drawn = {"batch_size": batch_size, "seed": seed}
    units = {
        place: journal.part(f"{place} units", partial(units_at, net, blocks, place, **drawn), **drawn)
        for place in places
    }
    reading = partial(read_neurons, net, blocks, places, batch_size)
    neurons = journal.part("neurons", reading, places=places, batch_size=batch_size)
    generator = torch.Generator().manual_seed(seed)
    random = {
        place: random_sets(neurons[place].contribution, unit_of, n_random, generator, groups_at(net, place, unit_of))
        for place, (_, unit_of) in units.items()
    }
    n_classes = {family: len(blocks.label_names[family]) for family in families}
    about = {"by": by, "batch_size": batch_size, "permutations": PERMUTATIONS, "seed": seed}
    rivals = {
        place: Ablated(net, blocks, place, neurons[place].mean if by == "mean" else None, batch_size)
        for place in places
    }
    n_sets = {place: len(random[place].sets) + count_units(unit_of) for place, (_, unit_of) in units.items()}
    seconds = {
        place: journal.part(f"{place} seconds", rivals[place].seconds, batch_size=batch_size) for place in places
    }
    whole_time = duration(sum(seconds[place] * n for place, n in n_sets.items()))
    print(f"{sum(n_sets.values())} sets of neurons to ablate; about {whole_time} if none is measured yet", flush=True)
    found, control, detectable = [], {}, []
    with Progress("ablating", sum(n_sets.values()), "set") as steps:

        def measured(place: str, kind: str, sets: torch.Tensor):
            def told(name: str, rise: float) -> None:
                steps.update()
                print(f"without {name}: {rise:+.4f} nats/token", flush=True)

            names = [f"{place} {kind} {i}" for i in range(len(sets))]
            return ablate(rivals[place], sets, whole, n_classes, names, told, journal, **about)

        for place, (_, unit_of) in units.items() if n_random else ():
            sums = measured(place, "random set", random[place].sets)
            control[place] = {family: of_family.score() for family, of_family in sums.items()}
            detectable += detectable_rows(place, count_units(unit_of), control[place], seed)
        if detectable:
            print(detectable_table(detectable), flush=True)
        for place, (kind, unit_of) in units.items():
            sums = measured(place, kind, unit_sets(unit_of))
            scores = {family: of_family.score() for family, of_family in sums.items()}
            found.append(Ablation(place, kind, unit_of, sums, scores, control.get(place, {})))
    rows = [*ablation_rows(found, seed), *detectable]
    write_csv(directory / "matrix.csv", Cell._fields, cells_of(found, blocks.label_names))
    write_csv(directory / "ablation.csv", COLUMNS, map(astuple, rows))
    ablated = {
        a.place: {
            "kind": a.kind,
            "units": count_units(a.unit_of),
            "random_sets": len(random[a.place].sets),
            "contribution_error": random[a.place].error,
            "own_neurons": random[a.place].own,
        }
        for a in found
    }
    written = {"model": model, **subject.text, "by": by, "seed": seed, "command": command_line(), "nats": nats}
    write_json(directory / "ablation.json", written | {"rows": rows, "units": ablated})
    figure = ablation_figure(short_name(model), found, families[0], blocks.label_names[families[0]])
    write_figure(directory / "ablation.png", figure)
    print(ablation_table(rows, found, by))
    print(f"written to {directory}")
