"""`eval.py sae`: how good a sparse autoencoder is, beside PCA, a random coder and a coder of a random model."""

from dataclasses import astuple
from functools import cache
from pathlib import Path

from torch import Tensor

from slms.commands.coder import OpenCoder, open_coder
from slms.commands.subject import results_of, short_name
from slms.data.text import BlockSpec, load_blocks
from slms.data.tokenizer import special_ids
from slms.measure.journal import Journal
from slms.measure.rows import COLUMNS
from slms.measure.sae import CoderNumbers, coder_rows, density_quantiles, measure_coders
from slms.models.base import random_twin
from slms.models.card import shortened
from slms.models.pair import Models, Pair
from slms.report.artifacts import write_csv, write_json
from slms.report.coder_figure import coder_figure
from slms.report.palette import write_figure
from slms.report.sae import quality_table, si_table
from slms.sae.baselines import PCA, FixedCoder, random_coder
from slms.sae.config import CoderConfig, Kind
from slms.sae.control import control_of, train_control
from slms.sae.evaluate import AtSource
from slms.sae.load import coder_directories

CONTROL = "random model"


def sae(
    directory: str,
    n_tokens: int | None = 65_536,
    batch_size: int = 16,
    baselines: bool = True,
    control_tokens: int = 262_144,
    output_dir: str = "artifacts",
    **options,
) -> None:
    """L0, FVU, loss recovered (zero and mean ablation), KL, dead share and SI of a sparse autoencoder, with intervals.

    If the command is killed, give it again and it continues where it stopped.

    Args:
        directory: a SAELens directory (cfg.json, sae_weights.safetensors), or a run, to measure each of its `saes/`.
        n_tokens: tokens to measure on.
        batch_size: blocks in one forward pass.
        baselines: also measure PCA and a random coder at the same L0.
        control_tokens: tokens that train a control, a coder of the model with random weights at the same L0; 0 leaves
            the control out.
        output_dir: quality.json, quality.csv, quality.png and .svg go to OUTPUT_DIR/sae/NAME/TEXT/.
    """
    for path in coder_directories(Path(directory)):
        opened = open_coder(str(path), batch_size=batch_size, n_tokens=n_tokens, **options)
        _report(path, opened, batch_size, baselines, control_tokens, output_dir)


def _report(
    directory: Path, opened: OpenCoder, batch_size: int, baselines: bool, control_tokens: int, output: str
) -> None:
    coder, subject, source, to = opened.coder, opened.subject, opened.source, opened.target
    blocks, special = subject.blocks, special_ids(subject.tokenizer)
    options = opened.made_from | {"batch_size": batch_size, "baselines": baselines}
    named = subject._replace(name=str(directory))
    place, journal = results_of(named, output, "sae", control_tokens=control_tokens, **options)
    journal.made_from |= options

    def used() -> int:
        """The mean number of latents that a token uses, rounded, at least 1."""
        values = opened.placed.latents(opened.x)[1]
        return max(round(float((values > 0).sum() / len(opened.x))), 1)

    k = cache(lambda: journal.part("latents used", used))

    def measured() -> dict[str, CoderNumbers]:
        placed = opened.placed
        coders: dict[str, FixedCoder | PCA | AtSource] = {"this coder": placed}
        coders |= {f"this coder, {part.name}": AtSource(placed, i) for i, part in enumerate(to.parts)}
        if baselines:
            coders["random coder"] = random_coder(source, to, opened.x, opened.y, coder.d_sae, k())
            coders["PCA"] = PCA(source, to, opened.x, opened.y, k())
        return measure_coders(opened.lm, blocks, coders, special, batch_size, journal)

    twin = cache(lambda: _random(opened.lm))
    kind: Kind = "topk" if coder.config.kind == "topk" else "batch_topk"
    config = cache(lambda: CoderConfig(kind=kind, d_sae=coder.d_sae, k=k()))

    def trained() -> dict[str, Tensor]:
        text = subject.text
        train = BlockSpec(
            text["corpus"], "train", None, text["text_field"], 0, text["block_size"], control_tokens, False
        )
        ids = load_blocks(train, subject.tokenizer).input_ids
        return train_control(twin(), source, to, ids, special, config(), control_tokens).state_dict()

    def measured_control() -> dict[str, CoderNumbers]:
        state = of_control.part("control coder", trained)
        print(f"{directory}: {CONTROL}'s coder trained on {control_tokens:,} tokens", flush=True)
        control = control_of(state, source, to, config())
        return measure_coders(twin(), blocks, {CONTROL: control}, special, batch_size, of_control)

    found = journal.part("coders", measured)
    print(f"{directory}: {', '.join(found)} measured", flush=True)
    if control_tokens:
        of_control = Journal(journal.directory, journal.made_from | {"control_tokens": control_tokens})
        found |= of_control.part("control", measured_control)
        print(f"{directory}: {CONTROL} measured", flush=True)
    results, rows = {name: one.quality for name, one in found.items()}, coder_rows(found)
    print(f"{directory}: {coder.config.kind}, {coder.d_sae} latents, of {subject.name} at {opened.place}\n")
    print(f"{quality_table(results)}\n\n{si_table({name: one.si for name, one in found.items() if one.si})}")
    if opened.versus is not None:
        print("  losses of a coder as a whole: the mean of the two models', each read through its own part")
    if control_tokens:
        print(f"  {CONTROL}: a {kind} coder of the model with random weights, {control_tokens:,} tokens")
    content = {
        "directory": str(directory),
        "model": subject.name,
        "versus": opened.versus,
        "site": source.name,
        "target": to.name,
        **subject.text,
        "kind": coder.config.kind,
        "d_sae": coder.d_sae,
        "control_tokens": control_tokens,
        "density": {name: density_quantiles(quality) for name, quality in results.items()},
        "rows": rows,
    }
    write_json(place / "quality.json", content)
    write_csv(place / "quality.csv", COLUMNS, map(astuple, rows))
    title = f"{coder.config.kind}, {coder.d_sae:,} latents, of {short_name(subject.name)} at {opened.place}"
    tokens = results["this coder"].fvu.n
    subtitle = f"{shortened(subject.source)}, {tokens:,} tokens; 95 % intervals over documents"
    write_figure(place / "quality.png", coder_figure(results, title, subtitle))
    print(f"\nwritten to {place}")


def _random(lm: Models) -> Models:
    """The model, or both, with random weights."""
    return Pair(*(random_twin(lm[of]) for of in lm.names)) if isinstance(lm, Pair) else random_twin(lm)
