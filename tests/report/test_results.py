"""The results file: exact round trip, errors of one line, no crash on any bytes."""

import json
import random
import statistics

import pytest

from slms.measure.schema import Token
from slms.plain import to_plain
from slms.report.results import RESULTS_FILE, legacy_block, read_results, write_results


def test_round_trip(results_factory, tmp_path):
    results = results_factory()
    path = write_results(results, tmp_path)
    assert path == tmp_path / RESULTS_FILE
    assert read_results(tmp_path) == read_results(path) == results


def test_half_a_character_survives(results_factory, tmp_path):
    results = results_factory(layers=(0,))
    results.layers[0].pathways[0].top_tokens.append(Token("\udce2 日本", 3, 2.0))
    write_results(results, tmp_path)
    assert read_results(tmp_path).layers[0].pathways[0].top_tokens[-1].text == "\udce2 日本"


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
        (b'{"schema_version": 99}', "schema_version is 99; this slms reads up to 1"),
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
    data = to_plain(results_factory())
    data["layers"][2]["purity"]["value"] = "high"
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    assert _message(path).endswith("layers[2].purity.value is 'high'; it must be a finite number")


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


def test_fuzz_structure_and_bytes(results_factory, tmp_path):
    """Any change gives readable results or a ValueError of one line: nothing else, and nothing is invented."""
    rng = random.Random(0)
    data = to_plain(results_factory(layers=(0, 2), n_pathways=3, k=1))
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
            assert to_plain(read).keys() == data.keys()
    assert refused > 150


def test_legacy_block_is_the_sources_summary(results_factory):
    layer = results_factory(layers=(3,)).layers[0]
    block = legacy_block([layer])["layer_3"]
    purities = [pathway.purity_legacy for pathway in layer.pathways]
    assert block.avg_purity == pytest.approx(sum(purities) / 16)
    assert block.std_purity == pytest.approx(statistics.pstdev(purities))
    assert block.max_purity == max(purities)
    assert block.avg_normalized_entropy == pytest.approx(1 - block.avg_purity)
    assert (block.active_pathways, block.total_pathways, block.pathway_utilization) == (16, 16, 1.0)


def test_legacy_utilization_counts_silent_pathways(results_factory):
    """The sources divide by the active pathways only, and so always report 100 %."""
    from dataclasses import replace

    layer = results_factory(layers=(0,)).layers[0]
    quiet = [replace(p, tokens=9, purity_legacy=None) if p.index < 4 else p for p in layer.pathways]
    block = legacy_block([replace(layer, pathways=quiet)])["layer_0"]
    assert (block.active_pathways, block.pathway_utilization) == (12, 0.75)
