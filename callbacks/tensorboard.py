"""Writes to TensorBoard what is no scalar: figures, text tables and the hyper-parameter row."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from slms.measure.classes import preferred_class
from slms.measure.metrics import METRICS
from slms.measure.pathways import Tabulated
from slms.measure.rows import log_name, mean_rows
from slms.measure.schema import Labels, Pathway, Results
from slms.report.figures import utilization_figure
from slms.report.heatmap import heatmap_figure
from slms.report.palette import styled
from slms.report.words import visible

LAYOUT = {
    "overview": {
        "loss (nats per token)": ["Multiline", ["train/loss/total", "train/loss/lm", "val/loss"]],
        "balance loss": ["Multiline", ["train/loss/balance"]],
    }
    | {metric.title: ["Multiline", [f"val/{name}/L.*"]] for name, metric in METRICS.items() if metric.title}
}
"""The charts of the tab Custom Scalars; their tags are regular expressions."""


def writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """The trainer's TensorBoard writers; only the first rank has any."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def log_layout(trainer: Trainer) -> None:
    """Write the layout of the tab Custom Scalars for a routed run."""
    for writer in writers(trainer):
        writer.add_custom_scalars(LAYOUT)


@styled
def log_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """Draw a figure in the house's style to TensorBoard."""
    writer.add_figure(tag, figure, step)


def log_pathways(
    trainer: Trainer, found: Tabulated, labels: dict[str, Labels], heatmaps: tuple[str, ...], step: int
) -> None:
    """Write utilization bars, a pathway × class heatmap for each of `heatmaps`, and a text table of top tokens."""
    for writer in writers(trainer):
        # not `val/utilization`: TensorBoard shows a tag as scalar or as figure, never as both
        log_figure(writer, "val/load_by_pathway", utilization_figure(*found), step)
        for family in heatmaps:
            if any(family in pathway.profile for pathways in found.pathways.values() for pathway in pathways):
                figure = heatmap_figure(found.pathways, family, labels[family])
                log_figure(writer, f"val/pathways_by_{family}", figure, step)
        for place, pathways in found.pathways.items():
            writer.add_text(f"val/top_tokens/{place}", top_token_table(pathways, labels), step)


def top_token_table(pathways: list[Pathway], labels: dict[str, Labels]) -> str:
    """A Markdown table of a place's pathways: load, purity, preferred class of each family, most distinctive tokens."""
    lines = ["| pathway | load | purity | prefers | tokens (lift) |", "|" + " --- |" * 5]
    for pathway in pathways:
        tokens = ", ".join(f"`{_cell(visible(token.text))}` {token.lift:.1f}×" for token in pathway.top_tokens)
        classes = {f: preferred_class(pathway.profile[f], labels[f].share) for f in labels if f in pathway.profile}
        prefers = ", ".join(f"{family} {_cell(found)}" for family, found in classes.items() if found) or "–"
        purity = "–" if pathway.purity is None else f"{pathway.purity:.3f}"
        cells = [str(pathway.index), f"{pathway.load * len(pathways):.2f}×", purity, prefers, tokens]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")  # neither may end the cell or the code span


def log_hyperparameters(trainer: Trainer, config: dict[str, Any], results: Results, step: int) -> None:
    """Write the run's row of the HPARAMS tab: its model, data and seed beside its final numbers.

    `run_name="."` keeps the row in the run's own directory. `add_hparams` also draws the final numbers as scalars, so
    they bear the tags of the validation, whose last points they repeat.
    """
    final, settings = {"val/loss": results.losses.model.nats}, hyperparameters(config)
    if results.compute is not None:
        settings |= {"active_fraction": results.compute.active_fraction, "flops_saved": results.compute.total_saved}
    for row in mean_rows(results.rows):
        if METRICS[row.metric].title and row.value is not None:
            final[f"val/{log_name(row)}"] = row.value
    for writer in writers(trainer):
        writer.add_hparams(settings, final, run_name=".", global_step=step)


def hyperparameters(config: dict[str, Any]) -> dict[str, str | int | float | bool]:
    """The part of a run's configuration by which runs are compared: model, data, seed and length.

    >>> hyperparameters({"trainer": {"max_epochs": 2, "devices": 1}, "model": {"lr": 0.1, "routing": {"k": 4}}})
    {'model.lr': 0.1, 'model.routing.k': 4, 'trainer.max_epochs': 2}
    """
    trainer = config.get("trainer") or {}
    length = {key: trainer.get(key) for key in ("max_epochs", "max_steps", "precision", "accumulate_grad_batches")}
    kept = {"model": config.get("model"), "data": config.get("data"), "seed": config.get("seed_everything")}
    return flatten(kept | {"trainer": length})


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Flatten nested mappings to dotted keys; a value that is no number, string or flag becomes text, null is dropped.

    >>> flatten({"model": {"k": 4, "layers": [0, 2], "gate": None}})
    {'model.k': 4, 'model.layers': '[0, 2]'}
    """
    flat: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
