"""`eval.py layers`: the MLPs of a checkpoint."""

from slms.models.families import LayerInfo
from slms.models.listing import list_layers
from slms.report.artifacts import own_directory, write_csv, write_json
from slms.report.tables import text_table


def layers(model: str, output_dir: str = "artifacts") -> None:
    """List a model's MLPs: name, d_model (residual stream), d_ff (neurons), activation. No weights are read.

    Args:
        model: a model directory, `stories-1m` or a Hugging Face id.
        output_dir: layers.csv and layers.json go to OUTPUT_DIR/layers/NAME/MLPS/.
    """
    found = list_layers(model)
    directory = own_directory(output_dir, "layers", model, f"{len(found)}-mlps", {"layers": found})
    write_csv(directory / "layers.csv", LayerInfo._fields, found)
    write_json(directory / "layers.json", {"model": model, "layers": [layer._asdict() for layer in found]})
    head = ["layer", "name", "d_model", "d_ff", "activation", "gated"]
    rows = [
        [f"L{x.index}", x.name, str(x.d_model), str(x.d_ff), x.activation, "yes" if x.gated else "no"] for x in found
    ]
    print(text_table(head, rows, left=2))
    print(f"written to {directory}")
