"""`eval.py ablation`: which classes of tokens suffer without a pathway or a community of neurons."""

from dataclasses import astuple
from typing import Literal

from tqdm.auto import tqdm

from slms.commands.subject import open_subject, short_name
from slms.measure.ablation import Cell, ablation_rows, cells_of, count_units, measure_ablation, units_at
from slms.measure.rows import COLUMNS
from slms.models.anatomy import find_mlps
from slms.models.place import place_name
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.report.ablation import ablation_figure, ablation_table
from slms.report.artifacts import artifact_directory, write_csv, write_json
from slms.report.palette import write_figure
from slms.report.provenance import command_line


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

    Units are the pathways of routed MLPs, or of a dense model's MLPs the communities of co-active neurons. SI-causal is
    the share of a unit's loss increase that falls on its best class (every class weighing alike, best class and share
    from different halves of the documents), minus the share under permuted labels; with 95 % intervals over documents.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        n_tokens: tokens to measure on; each unit takes one forward pass over them, two with the control.
        layers: indices; by default the routed layers, or all of a dense model.
        families: label families (pos, semantic, token_class, …); by default pos, semantic and token_class. The first is
            drawn.
        by: what takes the place of a unit's activations: their means, or zero.
        control: also ablate random sets of neurons of the same sizes.
        batch_size: blocks of one forward pass.
        seed: of the communities, the permutations and the random sets.
        output_dir: ablation.csv, matrix.csv, ablation.json and ablation.png go to OUTPUT_DIR/ablation/NAME/.
    """
    subject = open_subject(model, n_tokens=n_tokens, **text)
    blocks = subject.blocks
    known = sorted(find_mlps(subject.model))
    if wrong := [layer for layer in layers or () if layer not in known]:
        raise ValueError(f"--layers {wrong[0]}: the model's MLPs are {known[0]} to {known[-1]}")
    everything = list(routed_modules(subject.model, RoutedMLP)) or [place_name(layer) for layer in known]
    chosen = everything if layers is None else [place_name(layer) for layer in layers]
    asked = ["pos", "semantic", "token_class"] if families is None else families
    if not chosen or not asked:
        raise ValueError(f"--{'families' if chosen else 'layers'} is empty; it must name at least one")
    if unknown := [family for family in asked if family not in blocks.label_names]:
        raise ValueError(
            f"--families {unknown[0]}: this text has no such labels; it has {', '.join(blocks.label_names)}"
        )
    units = {place: units_at(subject.model, blocks, place, batch_size, seed) for place in chosen}
    total = sum(count_units(unit_of) for _, unit_of in units.values()) * (2 if control else 1)
    with tqdm(total=total, desc="ablating", unit="unit", leave=False, delay=2) as bar:
        whole, found = measure_ablation(
            subject.model, blocks, units, asked, by, control, batch_size=batch_size, seed=seed, progress=bar.update
        )
    rows = ablation_rows(found, seed)
    directory = artifact_directory(output_dir, "ablation", model)
    write_csv(directory / "matrix.csv", Cell._fields, cells_of(found, blocks.label_names))
    write_csv(directory / "ablation.csv", COLUMNS, map(astuple, rows))
    write_json(
        directory / "ablation.json",
        {"model": model, **subject.text, "by": by, "seed": seed, "command": command_line(),
         "nats": float(whole.nll.mean()), "rows": rows,
         "units": {a.place: {"kind": a.kind, "units": count_units(a.unit_of)} for a in found}},
    )  # fmt: skip
    figure = ablation_figure(short_name(model), found, asked[0], blocks.label_names[asked[0]])
    write_figure(directory / "ablation.png", figure)
    print(f"{model} on {subject.source}: {len(whole.nll):,} predicted tokens, "
          f"{float(whole.nll.mean()):.4f} nats/token with nothing ablated")  # fmt: skip
    print(ablation_table(rows, found, by))
    print(f"written to {directory}")
