"""`eval.py layers`."""

import csv
import json

import eval as evaluation
import slms


def test_layers_of_the_embedded_base(tmp_path, capsys):
    evaluation.main(["layers", "--model", "stories-1m", f"--output-dir={tmp_path}"])
    printed = capsys.readouterr().out
    (directory,) = (tmp_path / "layers" / "stories-1m").iterdir()
    with (directory / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = slms.list_layers("stories-1m")
    assert [row["name"] for row in rows] == [layer.name for layer in found]
    assert rows[3] == {
        "index": "3",
        "name": "transformer.h.3.mlp",
        "d_model": "64",
        "d_ff": "256",
        "activation": "gelu_new",
        "gated": "False",
    }
    assert json.loads((directory / "layers.json").read_text())["layers"][3]["d_ff"] == 256
    assert "transformer.h.3.mlp" in printed and "gelu_new" in printed
