"""What callbacks write to TensorBoard beside scalars: figures, text tables and the hyper-parameter row."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from slms.measure.schema import Labels, Layer, Results
from slms.models.place import place_name
from slms.report.figures import utilization_figure
from slms.report.heatmap import heatmap_figure
from slms.report.reading import preferred_class, visible

LAYOUT = {
    "overview": {
        "loss (nats per token)": ["Multiline", ["train/loss/total", "train/loss/lm", "val/loss"]],
        "balance loss": ["Multiline", ["train/loss/balance"]],
        "purity by place": ["Multiline", ["val/purity/L.*"]],
        "share of pathways in use": ["Multiline", ["val/utilization/L.*"]],
        "largest load over the mean": ["Multiline", ["val/max_load/L.*"]],
    }
}
"""Charts of the tab Custom Scalars; tags are regular expressions."""


def writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """The trainer's TensorBoard writers; none on other ranks than the first."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def log_layout(trainer: Trainer) -> None:
    """What the tab Custom Scalars shows of a routed run."""
    for writer in writers(trainer):
        writer.add_custom_scalars(LAYOUT)


def log_layers(
    trainer: Trainer, layers: list[Layer], labels: dict[str, Labels], heatmaps: tuple[str, ...], step: int
) -> None:
    """Utilization bars, a pathway × class heatmap for each family in `heatmaps`, and top tokens as a text table."""
    for writer in writers(trainer):
        # not `val/utilization`: TensorBoard shows a tag as scalar or as figure, never as both
        writer.add_figure("val/load_by_pathway", utilization_figure(layers), step)
        for family in heatmaps:
            if any(family in pathway.profile for layer in layers for pathway in layer.pathways):
                writer.add_figure(f"val/pathways_by_{family}", heatmap_figure(layers, family, labels[family]), step)
        for layer in layers:
            writer.add_text(f"val/top_tokens/{place_name(layer.layer)}", top_token_table(layer, labels), step)


def top_token_table(layer: Layer, labels: dict[str, Labels]) -> str:
    """A Markdown table of a layer's pathways: load, purity, preferred class of each family, most telling tokens."""
    lines = ["| pathway | load | purity | prefers | tokens (lift) |", "|" + " --- |" * 5]
    for pathway in layer.pathways:
        tokens = ", ".join(f"`{_cell(visible(token.text))}` {token.lift:.1f}×" for token in pathway.top_tokens)
        classes = {f: preferred_class(pathway, f, labels[f].share) for f in labels if f in pathway.profile}
        prefers = ", ".join(f"{family} {_cell(found)}" for family, found in classes.items() if found) or "–"
        purity = "–" if pathway.purity is None else f"{pathway.purity:.3f}"
        cells = [str(pathway.index), f"{pathway.load * layer.n_pathways:.2f}×", purity, prefers, tokens]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")  # neither may end the cell or the code span


def log_hyperparameters(trainer: Trainer, config: dict[str, Any], results: Results, step: int) -> None:
    """The run's row in the HPARAMS tab: what its model, data and seed were against its final numbers.

    `run_name="."` keeps the row in the run's own directory. The final numbers go by the tags of the validation, whose
    last points they repeat, because `add_hparams` also draws them as scalars.
    """
    final, facts = {"val/loss": results.losses.model.nats}, hyperparameters(config)
    if results.compute is not None:
        facts |= {"active_fraction": results.compute.active_fraction, "flops_saved": results.compute.total_saved}
    purities = [layer.purity.value for layer in results.layers if layer.purity.value is not None]
    if purities:
        final["val/purity"] = sum(purities) / len(purities)
    for writer in writers(trainer):
        writer.add_hparams(facts, final, run_name=".", global_step=step)


def hyperparameters(config: dict[str, Any]) -> dict[str, str | int | float | bool]:
    """Of a run's configuration what runs are compared by: model, data, seed and length.

    >>> hyperparameters({"trainer": {"max_epochs": 2, "devices": 1}, "model": {"lr": 0.1, "routing": {"k": 4}}})
    {'model.lr': 0.1, 'model.routing.k': 4, 'trainer.max_epochs': 2}
    """
    trainer = config.get("trainer") or {}
    length = {key: trainer.get(key) for key in ("max_epochs", "max_steps", "precision", "accumulate_grad_batches")}
    kept = {"model": config.get("model"), "data": config.get("data"), "seed": config.get("seed_everything")}
    return flatten(kept | {"trainer": length})


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested mappings to dotted keys; what is no number, string or flag is written out, null is left out.

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
