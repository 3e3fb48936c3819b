"""Prompts of probe tasks as token blocks: one prompt a row, padded on the right, which causal attention never sees."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from slms.data.probe_tasks import Task
from slms.data.text import Blocks

PAD = -1  # document of a position that holds no token


def prompt_blocks(
    tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, context: int, max_tokens: int | None = None
) -> Blocks:
    """The texts of tasks, the shorter rows first; `doc_ids` number them in the tasks' order and are −1 at padding.

    Args:
        context: tokens that the model can read; longer texts are cut, as they are at the task's own `max_tokens`, or
            where a task has none at `max_tokens`.

    Returns:
        Blocks with the label family `task`, −1 at padding.
    """
    rows: list[tuple[list[int], int, int]] = []
    for index, task in enumerate(tasks):
        limit = min(context, task.max_tokens or max_tokens or context)
        for ids in tokenizer(task.texts, verbose=False)["input_ids"]:
            rows.append((ids[:limit], len(rows), index))
    rows = sorted((row for row in rows if row[0]), key=lambda row: len(row[0]))
    if not rows:
        raise ValueError("the tasks' texts have no tokens")
    shape = (len(rows), len(rows[-1][0]))
    input_ids, doc_ids = np.zeros(shape, dtype=np.int64), np.full(shape, PAD, dtype=np.int32)
    classes = np.full(shape, -1, dtype=np.int16)
    for r, (ids, document, task_index) in enumerate(rows):
        input_ids[r, : len(ids)], doc_ids[r, : len(ids)], classes[r, : len(ids)] = ids, document, task_index
    return Blocks(input_ids, doc_ids, {"task": classes}, {"task": tuple(task.task_id for task in tasks)})
