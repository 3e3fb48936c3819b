"""Prompts as padded rows."""

import pytest

import slms
from slms.data.probe_tasks import Item, Task
from slms.data.prompts import prompt_blocks


def test_rows_hold_the_prompts_cut_and_padded():
    _, tokenizer = slms.load_base("stories-1m")
    tasks = [
        Task(
            "long", "", "", (Item("Once upon a time, there was a girl named Lily."), Item("A dog ran.")), max_tokens=6
        ),
        Task("short", "", "", (Item("The cat."),)),
    ]
    blocks = prompt_blocks(tasks, tokenizer, context=2048)
    assert blocks.label_names == {"task": ("long", "short")}
    expected = {i: tokenizer(text)["input_ids"] for i, text in enumerate(t for task in tasks for t in task.texts)}
    expected[0] = expected[0][:6]
    for row, docs, classes in zip(blocks.input_ids, blocks.doc_ids, blocks.labels["task"], strict=True):
        (document,) = set(docs[docs >= 0].tolist())
        assert row[docs >= 0].tolist() == expected[document]
        assert set(classes[docs >= 0].tolist()) == {0 if document < 2 else 1} and set(classes[docs < 0].tolist()) <= {
            -1
        }
    lengths = (blocks.doc_ids >= 0).sum(1)
    assert list(lengths) == sorted(lengths) and lengths.max() == blocks.input_ids.shape[1] == 6
    assert prompt_blocks(tasks, tokenizer, context=3).input_ids.shape[1] == 3
    with pytest.raises(ValueError, match="no tokens"):
        prompt_blocks([Task("none", "", "", (Item(""),))], tokenizer, 8)
