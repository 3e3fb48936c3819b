from types import SimpleNamespace

import pytest
import torch

from slms.data.corpora import CorpusConfig
from slms.data.module import BlockOrder, TextData
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED


def order(**kwargs):
    return BlockOrder(**{"n_blocks": 10, "batch_size": 2, "batches_per_epoch": 3, "seed": 1} | kwargs)


def test_order_visits_every_block_once_a_pass_whatever_the_epoch():
    blocks = []
    for epoch in range(5):
        blocks += [b for batch in order(epoch=epoch) for b in batch]
    assert sorted(blocks[:10]) == sorted(blocks[10:20]) == list(range(10))
    assert blocks[:10] != blocks[10:20]


def test_ranks_together_read_what_one_process_reads():
    alone = [b for batch in order(batch_size=4) for b in batch]
    ranks = [list(order(rank=r, world=2)) for r in range(2)]
    together = [sorted(a + b) for a, b in zip(*ranks, strict=True)]
    assert together == [sorted(alone[i : i + 4]) for i in range(0, 12, 4)]


def data(**kwargs):
    defaults = dict(block_size=32, batch_size=2, train_tokens=1024, epoch_tokens=256, val_tokens=512)
    made = TextData(CorpusConfig(name="stories"), read_tokenizer(EMBEDDED["stories-1m"]), **(defaults | kwargs))
    made.prepare_data()
    made.setup("fit")
    return made


def test_a_loader_resumes_exactly_where_it_stopped():
    whole, stopped = data().train_dataloader(), data().train_dataloader()
    expected = [b["input_ids"] for _ in range(2) for b in whole]
    seen = []
    for batch in stopped:
        seen.append(batch["input_ids"])
        if len(seen) == 3:
            state = stopped.state_dict()
            break
    resumed = data().train_dataloader()
    resumed.load_state_dict(state)
    seen += [b["input_ids"] for b in resumed] + [b["input_ids"] for b in resumed]
    assert len(seen) == len(expected) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_state_at_the_end_of_an_epoch_begins_the_next():
    loader = data().train_dataloader()
    loader.load_state_dict({"epoch": 0, "done": len(loader)})
    state = loader.state_dict()
    assert (state["epoch"], state["done"]) == (1, 0)


@pytest.mark.parametrize("blocks_per_batch, fits", [(2, True), (4, False)])
def test_a_state_of_batches_of_another_size_is_refused(blocks_per_batch, fits):
    """Two processes with batches of 1 read the same global batches; twice as many blocks a step are other positions."""
    loader = data().train_dataloader()
    state = {"epoch": 0, "done": 1, "blocks_per_batch": blocks_per_batch, "batches_per_epoch": 4}
    if fits:
        loader.load_state_dict(state)
        assert loader.state_dict().items() >= state.items()
    else:
        with pytest.raises(ValueError, match=r"batch_size is 2 on 1 process.*keep batch_size × processes at 4"):
            loader.load_state_dict(state)


def test_a_state_of_another_text_is_refused():
    state = data(seed=1).train_dataloader().state_dict()
    with pytest.raises(ValueError, match="text has changed since the checkpoint"):
        data(seed=2).train_dataloader().load_state_dict(state)


def test_ranks_share_the_validation_blocks_without_overlap():
    made, seen = data(val_tokens=7 * 32), []
    for rank in range(3):
        made.trainer = SimpleNamespace(world_size=3, global_rank=rank)
        seen += [row for batch in made.val_dataloader() for row in batch["block_ids"].tolist()]
    assert seen == list(range(7))


def test_an_epoch_begins_new_blocks_though_the_last_one_was_not_read_past_its_end():
    loader = data(train_tokens=2048).train_dataloader()
    epochs = []
    for _ in range(3):  # as Lightning does: exactly len(loader) batches, then a new iterator
        batches = iter(loader)
        epochs.append([next(batches)["input_ids"] for _ in range(len(loader))])
    assert not any(torch.equal(a, b) for a in epochs[0] for b in epochs[1] + epochs[2])


def test_validation_batches_cover_every_block_once_with_labels():
    made = data()
    batches = list(made.val_dataloader())
    ids = torch.cat([b["input_ids"] for b in batches])
    assert torch.equal(ids, torch.from_numpy(made.val_blocks.input_ids.astype("int64")))
    assert {"doc_ids", "labels_pos", "labels_domain", "labels_frequency"} <= set(batches[0])


def test_calibration_is_the_first_training_blocks():
    made = data()
    assert made.calibration(100).tolist() == made.train_blocks.input_ids[:4].tolist()


@pytest.mark.parametrize("kwargs", [{"block_size": 1}, {"batch_size": 0}, {"val_tokens": 0}])
def test_impossible_sizes_are_refused(kwargs):
    with pytest.raises(ValueError, match=f"data.{next(iter(kwargs))} is"):
        TextData(CorpusConfig(name="stories"), **kwargs)


def test_an_epoch_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="an epoch holds only 8 blocks"):
        data(batch_size=64).train_dataloader()


def limited(batches, overfit=0.0):
    made = data(train_tokens=2048)
    made.trainer = SimpleNamespace(world_size=1, global_rank=0, limit_train_batches=batches, overfit_batches=overfit)
    return made.train_dataloader()


def taken(loader, n):
    return [batch["block_ids"].tolist() for batch, _ in zip(loader, range(n), strict=False)]


@pytest.mark.parametrize("limit", [3, 0.75])
def test_an_epoch_cut_short_ends_where_it_is_cut(limit):
    """A run that resumes at the end of such an epoch reads what it would have read without the pause."""
    whole, stopped = limited(limit), limited(limit)
    expected = [taken(whole, 3) for _ in range(2)]
    assert taken(stopped, 3) == expected[0]
    resumed = limited(limit)
    resumed.load_state_dict(stopped.state_dict())
    assert taken(resumed, 3) == expected[1] != expected[0]


def test_every_epoch_of_an_overfitted_run_reads_the_same_batches():
    loader = limited(2, overfit=2)
    first, second = taken(loader, 2), taken(loader, 2)
    assert first == second
    resumed = limited(2, overfit=2)
    resumed.load_state_dict(loader.state_dict())
    assert taken(resumed, 2) == first
