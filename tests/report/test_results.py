"""The results file makes an exact round trip, gives errors of one line, and crashes on no bytes."""

import json
import random
from pathlib import Path

import pytest

from slms.json_values import to_json_values
from slms.measure.schema import Token
from slms.report.results import RESULTS_FILE, read_results, write_results


def test_round_trip(results_factory, tmp_path):
    results = results_factory()
    path = write_results(results, tmp_path)
    assert path == tmp_path / RESULTS_FILE
    assert read_results(tmp_path) == read_results(path) == results


OLD = Path(__file__).parent / "assets" / "results_schema_1.json"  # a run of before, trimmed: two layers, one token each


def test_a_file_of_schema_1_is_read_with_every_number(tmp_path):
    """The file is the shortened main job's, written by the last version that had schema 1."""
    old, new = json.loads(OLD.read_text()), read_results(OLD)
    found = {row.key: row for row in new.rows}
    assert new.places == ["L1.mlp", "L3.mlp"] and new.schema == 3
    random = {(r.place, r.metric, r.family): r for r in new.controls["random_weights"].rows}
    for layer in old["layers"]:
        place = f"L{layer['layer']}.mlp"
        estimates = {("purity", ""): layer["purity"], ("entropy", ""): layer["entropy"]}
        estimates |= {("si", family): estimate for family, estimate in layer["si"].items()}
        for key, estimate in estimates.items():
            row = found[place, *key]
            for name in ("value", "low", "high", "null_mean", "null_sd", "ceiling", "n"):
                assert getattr(row, name) == estimate[name]
            assert row.control is None and row.seed == old["run"]["seed"]
            assert random[row.key].value == estimate["random_model"]
            assert estimate["z"] is None or row.z == pytest.approx(estimate["z"])
        for name in ("density", "chosen_per_token", "effective_pathways"):
            assert found[place, name, ""].value == layer[name]
        assert found[place, "max_load", ""].value == layer["max_violation"] + 1
        assert to_json_values(new.pathways[place]) == layer["pathways"]
    for part in ("run", "base", "data", "losses", "compute", "routing", "labels", "legacy"):
        now = to_json_values(getattr(new, part))
        later = {"validated_on", "kl", "head_fraction"}  # fields that schema 1 did not have
        assert (
            {k: v for k, v in now.items() if k not in later} == old[part] if isinstance(now, dict) else now == old[part]
        )
    write_results(new, tmp_path)
    assert read_results(tmp_path) == new


def test_a_file_of_schema_2_keeps_random_weights_under_their_name(results_factory, tmp_path):
    """Schema 2 had them as the rows' control; what a control is now was not measured then."""
    results = results_factory(role="static")
    data = json.loads(write_results(results, tmp_path).read_text())
    del data["controls"]
    data["schema"] = 2
    later = ("control_sd", "difference", "difference_low", "difference_high")
    for row in data["rows"]:
        row |= {"control": 0.01} if row["metric"] == "purity" else {}
        for name in later:
            del row[name]
    (tmp_path / RESULTS_FILE).write_text(json.dumps(data))
    new = read_results(tmp_path)
    assert new.rows == results.rows and new.schema == 3 and list(new.controls) == ["random_weights"]
    assert [(r.value, r.difference) for r in new.controls["random_weights"].rows] == [
        (0.01, row.value - 0.01) for row in results.rows if row.metric == "purity"
    ]
    write_results(new, tmp_path)
    assert read_results(tmp_path) == new


def test_half_a_character_survives(results_factory, tmp_path):
    results = results_factory(layers=(0,))
    results.pathways["L0.mlp"][0].top_tokens.append(Token("\udce2 日本", 3, 2.0))
    write_results(results, tmp_path)
    assert read_results(tmp_path).pathways["L0.mlp"][0].top_tokens[-1].text == "\udce2 日本"


def _message(path):
    with pytest.raises(ValueError) as error:
        read_results(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "is not JSON (line 1: Expecting value)"),
        (b"{", "is not JSON (line 1: Expecting property name enclosed in double quotes)"),
        (b'{"a": NaN}', "is not JSON (NaN is not a number JSON allows)"),
        (b'{"a": 1e999}', "is not JSON (1e999 is not a number JSON allows)"),
        (b"\xff\xfe\x00", "is not JSON ("),
        (b"[" * 100_000, "is not JSON (nested too deeply)"),
        (b"9" * 10_000, "is not JSON (Exceeds the limit"),
        (b"[]", "the content is []; it must be an object"),
        (b"{}", "run is missing"),
        (b'{"schema": 99}', "schema is 99; this slms reads up to 3"),
        (b'{"schema_version": 99}', "schema is 99; this slms reads up to 3"),
        (b'{"schema_version": 1}', "it has not the form of schema 1 (KeyError: 'layers')"),
    ],
)
def test_unreadable_content_is_named(tmp_path, content, what):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    assert what in _message(path)


def test_absent_file_is_named(tmp_path):
    assert "cannot be read (No such file or directory)" in _message(tmp_path / "none.json")
    assert "cannot be read" in _message(tmp_path / RESULTS_FILE)


def test_a_wrong_field_is_named_with_its_place(results_factory, tmp_path):
    data = to_json_values(results_factory())
    data["rows"][2]["value"] = "high"
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    assert _message(path).endswith("rows[2].value is 'high'; it must be a finite number")


def _mutate(value, rng):
    """One random change somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        return [*value[:i], _mutate(value[i], rng), *value[i + 1 :]]
    return rng.choice([None, True, -1, 1.5, "", "x", [], {}, [None], {"x": 1}, 10**30])


@pytest.mark.parametrize("schema", [1, 2])
def test_fuzz_structure_and_bytes(schema, results_factory, tmp_path):
    """Any change gives readable results or a ValueError of one line: nothing else, and nothing is invented."""
    rng = random.Random(0)
    new = to_json_values(results_factory(layers=(0, 2), n_pathways=3, k=1))
    data = new if schema == 2 else json.loads(OLD.read_text())
    if schema == 1:
        data["layers"] = [layer | {"pathways": layer["pathways"][:2]} for layer in data["layers"]]
    text = json.dumps(data).encode()
    path = tmp_path / "r.json"
    refused = 0
    for i in range(300):
        if i % 2:
            content = json.dumps(_mutate(data, rng)).encode()
        else:
            cut = rng.randrange(len(text))
            content = text[:cut] + bytes(rng.randrange(256) for _ in range(rng.randrange(3))) + text[cut + 1 :]
        path.write_bytes(content)
        try:
            read = read_results(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert to_json_values(read).keys() == new.keys()
    assert refused > 150
