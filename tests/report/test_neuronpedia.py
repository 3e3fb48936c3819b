"""A Neuronpedia export holds what its importer reads, and nothing that it would refuse."""

import gzip
import json

import pytest

from slms.report.feature_schema import Feature, FeatureResults, LogitEffect, Neighbour, UseContext
from slms.report.neuronpedia import BATCH, Subject, write_neuronpedia

# The columns of the importer's tables (apps/webapp/prisma/schema.prisma at ebb8426): name → type, and those that a line
# must have because they have neither a default nor a null. Lines of the first four files go to `create`, which refuses
# a key that is no column; the batches go through jsonb_to_recordset with the keys of a file's first line.
STRINGS, NUMBERS, WHOLE = (list, str), (list, (int, float)), (list, int)
NUMBER = (int, float)
COMMON = {"creatorId": str, "createdAt": str}
MODEL = COMMON | {
    **dict.fromkeys(["id", "displayName", "displayNameShort", "owner", "visibility"], str),
    **dict.fromkeys(["instruct", "inferenceEnabled"], bool),
    **dict.fromkeys(["layers", "neuronsPerLayer"], int),
}
RELEASE = COMMON | {
    **dict.fromkeys(["name", "description", "descriptionShort", "creatorName", "visibility"], str),
    "urls": STRINGS,
}
SET = COMMON | {
    **dict.fromkeys(["modelId", "name", "description", "creatorName", "releaseName", "visibility"], str),
    "hasDashboards": bool,
    "urls": STRINGS,
}
SOURCE = COMMON | {
    **dict.fromkeys(["id", "modelId", "setName", "dataset", "notes", "visibility"], str),
    **dict.fromkeys(["hasDashboards", "inferenceEnabled"], bool),
    **dict.fromkeys(["num_prompts", "num_tokens_in_prompt"], int),
}
NEURON = COMMON | {
    **dict.fromkeys(["modelId", "layer", "index", "sourceSetName", "hookName"], str),
    **dict.fromkeys(["maxActApprox", "frac_nonzero"], NUMBER),
    **dict.fromkeys(["pos_str", "neg_str"], STRINGS),
    **dict.fromkeys(["pos_values", "neg_values", "topkCosSimValues"], NUMBERS),
    **dict.fromkeys(["freq_hist_data_bar_heights", "freq_hist_data_bar_values"], NUMBERS),
    "topkCosSimIndices": WHOLE,
    "hasVector": bool,
}
ACTIVATION = COMMON | {
    **dict.fromkeys(["id", "modelId", "layer", "index", "dataSource"], str),
    **dict.fromkeys(["maxValue", "minValue"], NUMBER),
    **dict.fromkeys(["maxValueTokenIndex", "qualifyingTokenIndex"], int),
    "tokens": STRINGS,
    "values": NUMBERS,
}
WORDS = ["the", "<b>", "\u2028", "ж", "\x00"]


def results(n):
    """n features; every third is never used."""
    features = []
    for i in range(n):
        used = i % 3 != 2
        strongest = [UseContext([0, 1, 2], [0.0, 1.5, 0.5], 1), UseContext([3, 4], [0.25, 0.5], 1)] if used else []
        features.append(
            Feature(
                i,
                9 * used,
                0.1 * used,
                0.5 if used else None,
                1.5 if used else None,
                None,
                -4 * used,
                [1, 2, 0, 6] if used else [],
                neighbours=[Neighbour((i + 1) % n, 0.25)],
                promoted=[LogitEffect(1, 2.5)],
                suppressed=[LogitEffect(3, -2.5)],
                strongest=strongest,
                random=strongest[:1],
            )
        )
    place = {
        "directory": "saes/x",
        "model": "Org/Model-1.5M",
        "kind": "topk",
        "site": "mlp_in.3",
        "target": "mlp_out.3",
    }
    numbers = {"d_sae": n, "tokens": 100, "documents": 3, "l0": 2.0, "dead": n // 3, "z_bound": 4.0}
    text = {"corpus": "stories", "split": "validation", "logits": "none"}
    return FeatureResults(**place, **numbers, **text, vocabulary=WORDS, features=features)


SUBJECT = Subject("run/1", 3, "blocks.3.hook_mlp_out", 8, 256, 64, "topk")


def fits(value, kind):
    if isinstance(kind, tuple) and kind[0] is list:
        return isinstance(value, list) and all(isinstance(one, kind[1]) for one in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def as_importer_reads(path, columns):
    """The rows of a file: every line has the same keys, each a column of the right type."""
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("ascii")
    rows = [json.loads(line) for line in text.strip().split("\n") if line]
    for row in rows:
        assert row.keys() == columns.keys()
        assert not [key for key, kind in columns.items() if not fits(row[key], kind)]
    return rows


def test_every_file_as_the_importer_reads_it(tmp_path):
    n = BATCH + 5
    place = write_neuronpedia(tmp_path, results(n), SUBJECT)
    assert place == tmp_path / "v1" / "org-model-1-5m" / f"3-mlp_in-to-mlp_out-topk-{n}"
    (model,) = as_importer_reads(place / "model.jsonl", MODEL)
    (release,) = as_importer_reads(place / "release.jsonl", RELEASE)
    (sources,) = as_importer_reads(place / "sourceset.jsonl", SET)
    (source,) = as_importer_reads(place / "source.jsonl", SOURCE)
    assert source["id"] == place.name == f"3-{sources['name']}"  # the layer stands before the first dash
    assert source["setName"] == sources["name"]
    assert sources["releaseName"] == release["name"] == "run-1"
    assert model["id"] == place.parent.name == sources["modelId"] == source["modelId"]
    features, uses = [], []
    for i in (0, 1):
        features += as_importer_reads(place / "features" / f"batch-{i}.jsonl.gz", NEURON)
        uses += as_importer_reads(place / "activations" / f"batch-{i}.jsonl.gz", ACTIVATION)
    assert [f["index"] for f in features] == [str(i) for i in range(n)]
    assert {(f["modelId"], f["layer"]) for f in features} == {(model["id"], source["id"])}
    assert len({use["id"] for use in uses}) == len(uses) == 2 * sum(i % 3 != 2 for i in range(n))  # none is there twice
    assert (uses[0]["tokens"], uses[0]["values"]) == (["the", "<b>", "\u2028"], [0.0, 1.5, 0.5])
    assert all(use["values"][use["maxValueTokenIndex"]] == use["maxValue"] == max(use["values"]) for use in uses)
    assert features[0]["freq_hist_data_bar_values"][0] == pytest.approx(2 ** (-3.5 / 4), rel=5e-3)
    assert gzip.decompress((place / "explanations" / "batch-0.jsonl.gz").read_bytes()) == b""


def test_a_file_without_a_line_is_not_written(tmp_path):
    dead = [f for f in results(9).features if not f.uses]
    place = write_neuronpedia(tmp_path, FeatureResults(**vars(results(3)) | {"features": dead}), SUBJECT)
    assert (place / "features" / "batch-0.jsonl.gz").exists()
    assert not (place / "activations").exists()


def test_a_second_coder_of_the_same_name_is_refused(tmp_path):
    write_neuronpedia(tmp_path, results(3), SUBJECT)
    other = SUBJECT._replace(kind="matryoshka"), SUBJECT._replace(name="Wide__x"), SUBJECT._replace(name="wide")
    for subject, name in zip(other, ("matryoshka-3", "topk-3__wide_x", "topk-3__wide"), strict=True):
        place = write_neuronpedia(tmp_path, results(3), subject)
        assert place.name == f"3-mlp_in-to-mlp_out-{name}"
        (sources,) = as_importer_reads(place / "sourceset.jsonl", SET)
        assert place.name.split("-", 1)[1].split("__")[0] == sources["name"]  # as Neuronpedia reads a source's name
    with pytest.raises(ValueError, match="a second coder would be org-model-1-5m/3-mlp_in-to-mlp_out-topk-3"):
        write_neuronpedia(tmp_path, results(3), SUBJECT)
