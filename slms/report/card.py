"""Writes the model card of a finished run: what was measured on its model, in words and in the hub's metadata."""

from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult
from transformers import PreTrainedModel

from slms.measure.metrics import METRICS
from slms.measure.rows import MODEL
from slms.measure.schema import Loss, Results
from slms.models.card import model_card, portable, shortened
from slms.report.place_tables import Columns, control_notes, family_columns, flat_columns, place_names
from slms.report.tables import executed, share


def run_card(model: PreTrainedModel, results: Results) -> str:
    """The card of the model that a run leaves behind."""
    base, data = results.base, results.data
    corpus = shortened(data.name)
    perplexity = EvalResult(
        task_type="text-generation",
        dataset_type=corpus,
        dataset_name=corpus,
        dataset_split="validation",
        metric_type="perplexity",
        metric_value=round(results.losses.model.perplexity, 4),
    )
    return model_card(
        model,
        name=results.run.name,
        base=shortened(base.name),
        corpus=corpus,
        results=[perplexity],
        measured=measured_text(results),
    )


def measured_text(results: Results) -> str:
    """The headline numbers as Markdown tables, with what they were measured on and by which command."""
    losses, run, data = results.losses, results.run, results.data
    rows = [_loss_row("this model", losses.model)]
    if losses.dense is not None:
        rows.insert(0, _loss_row("dense base, before training", losses.dense))
    tables = ["| | nats/token | 95 % interval | perplexity |\n|---|---|---|---|\n" + "\n".join(rows)]
    if results.rows and results.compute is not None:
        compute = results.compute
        tables.append(
            f"{executed(compute)} execute; FLOPs saved: {share(compute.mlp_saved)} of "
            f"the MLPs (routers included), {share(compute.total_saved)} of the whole model (head included)."
        )
        of_places = [row for row in results.rows if row.place != MODEL]
        names, flat = place_names(of_places), flat_columns(of_places, results.controls)
        tables.append(_markdown(flat, names))
        families = [one for one in family_columns(of_places, results.controls) if one.heads[0].startswith("SI ")]
        tables += [_markdown(families, names)] if families else []
        said = {metric.heading: metric.meaning for metric in METRICS.values() if metric.heading in _heads(flat)}
        tables.append("; ".join(f"{heading}: {meaning}" for heading, meaning in said.items()) + ".")
        tables.append("; ".join(control_notes(results.controls)) + ".")
    tokens = data.validation_tokens or losses.model.tokens
    place = shortened(data.validated_on or data.name)
    done = f"trained on {run.tokens_trained:,} tokens in {run.steps:,} steps (seed {run.seed})"
    with_ = f"slms {run.versions.get('slms', '')}, torch {run.versions.get('torch', '')}"
    tables += [
        f"On {tokens:,} validation tokens of `{place}`; {done} with {with_} on {run.hardware.get('device', '')} by",
        f"```bash\n{portable(run.command)}\n```",
        "The run's `llm_routing_results.json` holds every number with its interval and null.",
    ]
    return "\n\n".join(tables)


def _heads(columns: Sequence[Columns]) -> list[str]:
    return [head for one in columns for head in one.heads]


def _markdown(columns: Sequence[Columns], names: Mapping[str, str]) -> str:
    head = ["place", *_heads(columns)]
    cells = [[name, *(cell for one in columns for cell in one.cells[place])] for place, name in names.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])


def _loss_row(name: str, loss: Loss) -> str:
    interval = "" if loss.low is None or loss.high is None else f"[{loss.low:.4f}, {loss.high:.4f}]"
    return f"| {name} | {loss.nats:.4f} | {interval} | {loss.perplexity:.3f} |"
