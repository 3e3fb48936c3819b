"""`eval.py pathways`: which tokens and word classes the pathways of a routed model serve."""

import datetime
import time

from slms.commands.subject import open_subject, results_of, run_base, short_name
from slms.measure.classes import MOST_BY_CLASS
from slms.measure.controlled import ControlOptions, measure_controls
from slms.measure.passes import document_loss
from slms.measure.pathways import measure_pathways
from slms.measure.results import assemble, base_of, data_of
from slms.measure.schema import Base, Run
from slms.models.base import load_base, random_twin
from slms.models.flops import flops_per_token
from slms.models.routed import routed_modules
from slms.report import word_classes
from slms.report.closing_table import closing_table
from slms.report.figures import monosemanticity_figure
from slms.report.palette import write_figure
from slms.report.provenance import command_line, hardware, versions
from slms.report.results import FIGURE_FILE, RESULTS_FILE, write_results
from slms.report.word_classes import word_class_figure, word_class_table


def pathways(
    model: str,
    batch_size: int = 16,
    given_token: list[str] | None = None,
    control_seeds: int = 5,
    sample_tokens: int = 8192,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Purity, entropy, utilization and SI of every routed layer, against tokens and word classes, with their nulls.

    Args:
        model: a run directory, or the directory of a routed model.
        batch_size: blocks in one forward pass.
        given_token: label families (pos, semantic, …) whose SI is also computed given the token.
        control_seeds: seeds of each control (random routers, k-means) with the routers' loads; 0 leaves controls out.
        sample_tokens: tokens, spread evenly over the text, on which they are compared.
        output_dir: the results file and the figures go to OUTPUT_DIR/pathways/NAME/TEXT/: what each pathway is for
            and, if the number of pathways follows the token, how many a word class takes.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    subject = open_subject(model, **text)
    if not routed_modules(subject.model):
        raise ValueError(f"--model {model}: a dense model has no pathways; `eval.py perplexity` measures it")
    measured, random = (
        measure_pathways(net, subject.tokenizer, subject.blocks, batch_size, given_token or ())
        for net in (subject.model, random_twin(subject.model))
    )
    options = ControlOptions(control_seeds, sample_tokens)
    controlled = measure_controls(subject.model, subject.blocks, batch_size, given_token or (), options)
    base = run_base(model)
    dense = None if base is None else document_loss(load_base(base).model, subject.blocks, batch_size)
    config = subject.model.config.routing
    results = assemble(
        Run(
            name=short_name(model),
            role="routed",
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
        Base(name=model, source="local", asked=model) if base is None else base_of(base),
        data_of(subject.text["corpus"], subject.blocks, validated_on=subject.source),
        measured,
        dense=dense,
        controlled=controlled,
        random_weights=random.rows,
        flops=flops_per_token(subject.model, subject.text["block_size"], measured.densities, measured.through),
        routing=config,
    )
    directory, _ = results_of(subject, output_dir, "pathways", given_token=given_token, controls=options)
    write_results(results, directory / RESULTS_FILE)
    table = closing_table(results)
    if results.pathways:
        write_figure(directory / FIGURE_FILE, monosemanticity_figure(results))
        if words := word_class_table(results.rows):
            table += f"\n\n{words}"
            figure = word_class_figure(results.rows, f"{short_name(model)}: how many pathways a word takes")
            write_figure(directory / word_classes.FIGURE_FILE, figure)
    else:
        table += f"\n\nno figure: pathways are described where a place has at most {MOST_BY_CLASS}"
    print(f"{table}\n\nwritten to {directory}")
