"""`eval.py specialization`: how specialised the units of a model are."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from slms.commands.coder import OpenCoder, open_coder
from slms.commands.subject import Subject, open_subject, results_of, short_name
from slms.data.probe_tasks import MANIFEST, read_tasks
from slms.data.prompts import prompt_blocks
from slms.data.tokenizer import special_ids
from slms.files import write_atomic
from slms.measure.classes import check_families, token_texts
from slms.measure.journal import Journal, digest
from slms.measure.rows import COLUMNS, Row, beside, mean_rows
from slms.measure.specialization import Measured, measure_units
from slms.measure.units import LatentReader, NeuronReader, PathwayReader, UnitReader
from slms.models.anatomy import named_layers
from slms.models.base import random_twin
from slms.report.artifacts import write_csv, write_json
from slms.report.palette import write_figure
from slms.report.provenance import command_line, hardware, versions
from slms.report.specialization import specialization_table, unit_csv
from slms.report.specialization_figure import specialization_figure
from slms.sae.load import coder_directories

UNITS = ("neurons", "pathways", "features")
DEFAULT_GIVEN = ("semantic", "domain")
MOST_PROMPTS, FEWEST_PROMPTS = 32, 8  # of a task
A_PROMPT = 4096  # tokens of text for one more prompt of every task, which then adds less than a sixth to the cost

Pair = tuple[Measured, Measured]
"""What was measured on the text, and on the tasks' prompts."""


def specialization(
    model: str | None = None,
    units: str = "neurons",
    sae: str | None = None,
    layers: list[str] | None = None,
    batch_size: int = 16,
    families: list[str] | None = None,
    given_token: list[str] | None = None,
    probe_manifest: str | None = None,
    task_id: list[str] | None = None,
    active_share: float = 0.1,
    n_nulls: int = 10,
    graph: bool = True,
    random: bool = True,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Activation sparsity, specialization, semantic coherence and modularity of units, with nulls and 95 % intervals.

    AS: Gini, Hoyer, share of neurons that hold .9 of a token's contributions, participation ratio / N, exact zeros.
    SI: adjusted mutual information of a unit and a label of the token (0: chance; 1: the unit tells the class); also
    given the token, and with a prompt's task as the label. Coherence: mean cosine of the embeddings of the tokens that
    activate a unit most. Q: modularity of the co-activation graph, against graphs whose neurons' tokens are shuffled.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id; for features, by default the
            model that the SAE names.
        units: neurons, pathways (of a routed model) or features (of a sparse autoencoder).
        sae: a SAELens directory, or a run with `saes/`; needed for features.
        layers: layer names such as gpt_neox.layers.10.mlp, or numbers; by default all layers. Only for neurons.
        batch_size: blocks in one forward pass.
        families: label families for SI (token_class, frequency, pos, semantic, number, domain); by default all.
        given_token: families whose SI is also computed given the token; by default semantic and domain, if known.
        probe_manifest: prompts whose task is the label, by default the project's own; the first 8 of each task are
            read, rising to 32 at 131,072 tokens of text.
        task_id: tasks of the manifest; by default all.
        active_share: share of tokens at which a neuron counts as on: those where its |activation| is largest.
        n_nulls: how many token-shuffled graphs form the null of Q.
        graph: also measure Q, the slowest part.
        random: also measure the model with random weights.
        output_dir: specialization.csv, .json, .png, .svg and units.csv go to OUTPUT_DIR/specialization/NAME/TEXT/.
    """
    if units not in UNITS:
        raise ValueError(f"--units {units}: it must be one of {', '.join(UNITS)}")
    if not 0 < active_share < 1:
        raise ValueError(f"--active_share {active_share}: it must be above 0 and below 1")
    if units == "features":
        if sae is None:
            raise ValueError("--units features needs --sae, a SAELens directory or a run with saes/")
        paths = coder_directories(Path(sae))
    elif model is None:
        raise ValueError(f"--units {units} needs --model")
    tasks = read_tasks(probe_manifest or MANIFEST, task_id)
    options: dict[str, Any] = {"units": units, "batch_size": batch_size, "families": families}
    options |= {"given_token": given_token, "tasks": digest({"tasks": tasks})}
    options |= {"active_share": active_share, "n_nulls": n_nulls, "graph": graph}

    def measure(reader: UnitReader, subject: Subject, graphs: int, name: str, journal: Journal) -> Pair:
        """Measure the units on the text, and on the tasks' prompts."""
        given = [family for family in DEFAULT_GIVEN if family in subject.blocks.label_names]
        on_text = measure_units(
            reader,
            subject.blocks,
            batch_size,
            families,
            given if given_token is None else given_token,
            graphs,
            graph=graph,
            journal=journal,
            name=name,
        )
        context = getattr(subject.model.config, "max_position_embeddings", subject.text["block_size"])
        few = min(max(subject.blocks.input_ids.size // A_PROMPT, FEWEST_PROMPTS), MOST_PROMPTS)
        prompts = prompt_blocks([task._replace(items=task.items[:few]) for task in tasks], subject.tokenizer, context)
        named = f"{name}, prompts"
        return on_text, measure_units(reader, prompts, batch_size, graph=False, journal=journal, name=named)

    found: list[Pair] = []
    control: list[Pair] = []
    if units == "features":
        for path in paths:
            opened = open_coder(str(path), model, batch_size=batch_size, **text)
            subject = opened.subject
            check_families(subject.blocks, families=families, given_token=given_token)
            options.setdefault("coders", []).append(opened.made_from)
            directory, journal = results_of(subject._replace(name=str(sae)), output_dir, "specialization", **options)
            journal.made_from |= options | {"coders": opened.made_from}

            def features(opened: OpenCoder = opened, journal: Journal = journal, name: str = path.name) -> Pair:
                net, W_dec = opened.lm, opened.coder.W_dec
                reader = LatentReader(
                    net, opened.placed, W_dec, name, opened.source, special_ids(opened.subject.tokenizer)
                )
                return measure(reader, opened.subject, n_nulls, name, journal)

            found.append(journal.part(path.name, features))
            print(f"{path.name}: measured", flush=True)
    else:
        assert model is not None
        subject = open_subject(model, **text)
        check_families(subject.blocks, families=families, given_token=given_token)
        chosen = named_layers(subject.model, layers)
        options["layers"] = chosen
        directory, journal = results_of(subject, output_dir, "specialization", random=random, **options)
        journal.made_from |= options

        def of(net: PreTrainedModel, graphs: int, name: str) -> Pair:
            if units == "neurons":
                reader: UnitReader = NeuronReader(net, subject.blocks, chosen, active_share, journal, name)
            else:
                reader = PathwayReader(net)
            return measure(reader, subject, graphs, name, journal)

        found.append(journal.part("model", lambda: of(subject.model, n_nulls, "model")))
        places = len(found[0][0].units)
        print(f"{short_name(subject.name)}: {places} {'place' if places == 1 else 'places'} measured", flush=True)
        if random:
            control.append(journal.part("random weights", lambda: of(random_twin(subject.model), 2, "random weights")))
            print("the same with random weights: measured", flush=True)
    rows = _rows(found, control)
    on_text, on_prompts = found[0]
    units_found = [table for measured, _ in found for table in measured.units]
    ids = sorted({i for table in units_found for i in table.top_tokens.flatten().tolist()} - {-1})
    texts = dict(zip(ids, token_texts(subject.tokenizer, ids), strict=True))
    write_csv(directory / "specialization.csv", COLUMNS, map(astuple, rows))
    write_atomic(directory / "units.csv", unit_csv(units_found, on_text.label_names, texts))
    about = {
        "model": subject.name,
        "units": units,
        "sae": sae,
        **subject.text,
        "source": subject.source,
        "tokens": on_text.n_tokens,
        "documents": subject.blocks.n_documents,
        "prompt_tokens": on_prompts.n_tokens,
        "tasks": [task.task_id for task in tasks],
        "active_share": active_share if units == "neurons" else None,
        "coverage": on_text.coverage,
        "seconds": {key: sum(part.seconds[key] for part, _ in found) for key in on_text.seconds},
        "command": command_line(),
        "versions": versions(),
        "hardware": hardware(subject.model.device),
    }
    write_json(directory / "specialization.json", about | {"rows": rows})
    name = Path(str(sae)).name if units == "features" else short_name(subject.name)
    write_figure(directory / "specialization.png", specialization_figure(rows, name, units))
    print(specialization_table(rows, about))
    print(f"\nwritten to {directory}")


def _rows(found: list[Pair], control: list[Pair]) -> list[Row]:
    """The text's rows and the prompts' task rows, each beside its control; the means follow each group."""

    def of(pairs: list[Pair], prompts: bool) -> list[Row]:
        parts = [row for pair in pairs for row in pair[prompts].rows]
        return [row for row in parts if row.family == "task"] if prompts else parts

    rows: list[Row] = []
    for prompts in (False, True):
        one = beside(of(found, prompts), of(control, prompts))
        rows += [*one, *mean_rows(one)]
    return rows
