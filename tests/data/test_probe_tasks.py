"""Probe manifests: what is read, and that every fault is told with its file and line."""

import json

import pytest

from slms.data.probe_tasks import MANIFEST, Item, read_tasks
from slms.data.stories.probes import probe

SOURCES = {"ioi_minimal", "toy_arithmetic", "ner_sample", "induction_sequence", "python_doc", "wikitext_val_small"}


def line(**changes) -> str:
    row = {"task_id": "a", "source": {"type": "prompt_list", "prompts": ["One.", "Two."]}}
    return json.dumps({**row, **changes})


def items(*rows) -> dict:
    return {"type": "items", "items": list(rows)}


@pytest.fixture
def write(tmp_path):
    def write(*lines: str):
        path = tmp_path / "tasks.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def test_the_shipped_manifest():
    tasks = {task.task_id: task for task in read_tasks()}
    assert set(tasks) >= SOURCES | {"ioi", "agreement", "arithmetic", "induction", "opposites"}
    for task in tasks.values():
        assert task.domain and task.description and len(task.items) >= 4
        for item in task.items:
            assert item.text == item.text.strip()
            if item.answer is not None and not item.prompt.endswith(("self.", "pop", ".")):
                assert item.answer.startswith(" ") and item.foil.startswith(" ")
    assert not tasks["wikitext_val_small"].answered
    swapped = {(item.answer, item.foil) for item in tasks["ioi"].items}
    assert swapped == {(foil, answer) for answer, foil in swapped}  # no name is right more often than wrong
    for item in tasks["arithmetic"].items[:24]:
        a, b = item.prompt.splitlines()[-1].removesuffix(" =").split(" + ")
        assert int(item.answer) == int(a) + int(b) != int(item.foil)
    for item in tasks["toy_arithmetic"].items:
        assert int(item.answer) == eval(item.prompt.splitlines()[-1].removesuffix("=")) != int(item.foil)
    for item in tasks["induction"].items:
        *seen, last = item.prompt.split()
        assert seen[seen.index(last) + 1] == item.answer.strip()
        assert item.foil.strip() in seen


def test_kinds_of_sources(write):
    path = write(
        line(max_tokens=16, repeat=2, domain="d", description="e"),
        line(task_id="b", source={"type": "prompt", "text": "Only."}),
        "",
        line(task_id="c", source=items({"prompt": "2 + 2 =", "answer": " 4", "foil": " 5"}, {"prompt": "x"})),
        line(task_id="s", source={"type": "stories", "kind": "ioi", "n": 2, "seed": 3}),
    )
    a, b, c, s = read_tasks(path)
    assert a.texts == ["One.", "Two."] * 2 and (a.max_tokens, a.domain, a.description) == (16, "d", "e")
    assert b.texts == ["Only."] and b.max_tokens is None and not b.answered
    assert c.answered == (Item("2 + 2 =", " 4", " 5"),) and len(c.items) == 2
    assert s.items[1] == Item(*probe("ioi", 1, seed=3)[1:])
    assert [task.task_id for task in read_tasks(path, ["s", "a", "s"])] == ["s", "a"]


def test_a_dataset_is_read_only_when_its_task_is_asked_for(write, tmp_path):
    (tmp_path / "text.txt").write_text("First.\n\nSecond.\n\nThird.", encoding="utf-8")
    source = {"type": "dataset", "name": str(tmp_path / "text.txt"), "split": "all", "num_docs": 2}
    path = write(line(), line(task_id="t", source=source), line(task_id="gone", source=source | {"name": "no.txt"}))
    assert read_tasks(path, ["t"])[0].texts == ["First.", "Second."]
    with pytest.raises(ValueError, match=r"tasks\.jsonl:3: corpus no\.txt: no such file"):
        read_tasks(path)


def test_minimal_pairs_as_they_are(write):
    path = write(
        '{"sentence_good": "Dogs bark.", "sentence_bad": "Dogs barks.", "UID": "agreement", "pairID": "0"}',
        '{"sentence_good": "A dog barks.", "sentence_bad": "A dog bark.", "UID": "agreement"}',
    )
    (task,) = read_tasks(path)
    assert task.task_id == "agreement" and task.items[0] == Item("", "Dogs bark.", "Dogs barks.")
    assert task.texts == ["Dogs bark.", "A dog barks."]
    path = write(
        '{"clean_prefix": "The dog", "patch_prefix": "The dogs", "clean_answer": " is", "patch_answer": " are"}'
    )
    assert read_tasks(path)[0].items == (Item("The dog", " is", " are"),)


def test_real_minimal_pairs(shared_data):
    (blimp,) = read_tasks(shared_data / "probes" / "blimp_anaphor_gender_agreement.jsonl")
    assert blimp.task_id == "anaphor_gender_agreement" and len(blimp.answered) == 1000
    (nounpp,) = read_tasks(shared_data / "probes" / "nounpp_test.json")
    assert nounpp.items[0].prompt and nounpp.items[0].answer != nounpp.items[0].foil


BAD = {
    "{nonsense": "not JSON",
    "[1, 2]": "a line must be a JSON object",
    "[" * 100_000: "not",
    "{}": "'task_id' is missing",
    line(task_id=7): "'task_id' is missing, empty or no text",
    line(colour="red"): "unknown field 'colour'",
    line(source="text"): "'source' is missing or no object",
    line(source={"type": "web"}): "source.type is 'web'; it must be one of prompt, prompt_list, items, stories",
    line(source={"type": "prompt_list", "prompts": []}): "'a' has no items",
    line(source={"type": "prompt_list", "prompts": [1]}): "texts that are not empty",
    line(source=items({"prompt": "x", "answer": " y"})): "both an answer and a foil",
    line(source=items({"prompt": "x", "answer": " y", "foil": " y"})): "answer and foil are both ' y'",
    line(source=items({"prompt": "x", "answer": 4, "foil": " y"})): "'source.items[0].answer' is missing",
    line(source=items({"answr": "x"})): "source.items[0] must be an object",
    line(source={"type": "stories", "kind": "iou", "n": 4}): "source.kind is 'iou'",
    line(source={"type": "stories", "kind": "ioi", "n": 0}): "n is 0",
    line(source={"type": "dataset", "name": "x.txt"}): "num_docs is None",
    line(max_tokens=0): "max_tokens is 0",
    line(repeat="2"): "repeat is '2'",
    line(task_id="z"): "'z' occurs twice",
    '{"sentence_good": "x"}': "'sentence_bad' is missing",
    '{"clean_prefix": "x", "clean_answer": " y", "patch_answer": 1}': "'patch_answer' is missing",
}


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_told_with_file_and_line(bad, write):
    path = write(line(task_id="z"), "", bad)
    with pytest.raises(ValueError) as error:
        read_tasks(path)
    assert str(error.value).startswith(f"{path}:3: ") and BAD[bad] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_manifest(write, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_tasks(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"tasks\.jsonl: empty"):
        read_tasks(write("", "  "))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_tasks(tmp_path / "binary.jsonl")


def test_an_unknown_task_id_gets_the_nearest():
    with pytest.raises(ValueError, match=r"--task_id agrement: not in .*; the nearest of its 18 are agreement"):
        read_tasks(MANIFEST, ["agrement"])
    with pytest.raises(ValueError, match="names no task"):
        read_tasks(MANIFEST, [])
