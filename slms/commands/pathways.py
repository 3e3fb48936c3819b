"""`eval.py pathways`: what the pathways of a routed model serve."""

import datetime
import time
from pathlib import Path

from slms.commands.subject import open_subject, run_base, short_name
from slms.measure.passes import document_loss
from slms.measure.pathways import measure, random_model
from slms.measure.schema import Base, Data, Run
from slms.models.base import load_base
from slms.models.flops import flops_per_token
from slms.models.place import place_name
from slms.models.routed import routed_modules
from slms.models.source import resolve
from slms.report.assemble import assemble
from slms.report.facts import command_line, hardware, versions
from slms.report.figures import monosemanticity_figure
from slms.report.palette import write_figure
from slms.report.results import FIGURE_FILE, RESULTS_FILE, write_results
from slms.report.tables import closing_table


def pathways(
    model: str,
    batch_size: int = 16,
    given_token: list[str] | None = None,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Purity, entropy, utilization and SI of every routed layer, against tokens and word classes, with their nulls.

    Args:
        model: a run directory, or the directory of a routed model.
        batch_size: blocks of one forward pass.
        given_token: label families (pos, semantic, …) whose SI is also computed conditional on the token.
        output_dir: the results file and the figure go to OUTPUT_DIR/pathways/.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    subject = open_subject(model, **text)
    if not routed_modules(subject.model):
        raise ValueError(f"--model {model}: a dense model has no pathways; `eval.py perplexity` measures it")
    families = tuple(given_token or ())
    unknown = [family for family in families if family not in subject.blocks.label_names]
    if unknown:
        known = ", ".join(subject.blocks.label_names)
        raise ValueError(f"--given_token {unknown[0]}: this text has no such labels; it has {known}")
    measured = measure(subject.model, subject.tokenizer, subject.blocks, batch_size, families)
    null = random_model(subject.model)
    random = measure(null, subject.tokenizer, subject.blocks, batch_size, families)
    base = run_base(model)
    dense = None if base is None else document_loss(load_base(base).model, subject.blocks, batch_size)
    config = subject.model.config.routing
    came_from = Base(name=model, source="local", asked=model)
    if base is not None:
        found = resolve(base)
        came_from = Base(name=found.name, source=found.kind, asked=base.hub or base.name or found.name)
    results = assemble(
        Run(
            name=short_name(model),
            role="static" if config["router"] == "static" else "routed",
            command=command_line(),
            config_digest=None,
            seed=None,
            started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=round(time.monotonic() - clock, 1),
            steps=0,
            tokens_trained=0,
            versions=versions(),
            hardware=hardware(subject.model.device),
        ),
        came_from,
        Data(
            name=subject.text["corpus"],
            source="embedded" if subject.text["corpus"] == "stories" else "local",
            validation_tokens=int(subject.blocks.input_ids.size),
            validation_documents=int(subject.blocks.doc_ids.max()) + 1,
        ),
        measured,
        dense=dense,
        random=random,
        flops=flops_per_token(
            subject.model,
            subject.text["block_size"],
            {place_name(layer.layer): layer.density for layer in measured.layers},
        ),
        routing=config,
    )
    directory = Path(output_dir) / "pathways"
    write_results(results, directory / RESULTS_FILE)
    write_figure(directory / FIGURE_FILE, monosemanticity_figure(results))
    print(f"{closing_table(results)}\n\nwritten to {directory}")
