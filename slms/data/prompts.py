"""Turns prompts of probe tasks into token blocks, one per row; causal attention never sees the padding on the right."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from slms.data.probe_tasks import Task
from slms.data.text import Blocks

PAD = -1  # the document number of a position without a token


def prompt_blocks(
    tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, context: int, max_tokens: int | None = None
) -> Blocks:
    """Tokenise the texts of tasks, shorter rows first; `doc_ids` number them in the tasks' order, with −1 at padding.

    Args:
        context: number of tokens that the model can read. Texts are cut to this length and to the task's own
            `max_tokens`, or to `max_tokens` if the task has none.

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
