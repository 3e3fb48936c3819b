"""One pass over text gives losses by document and pathway tables, and the same numbers from one rank or two."""

import math

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

import slms
from slms.data.text import Blocks
from slms.measure.classes import token_texts
from slms.measure.passes import batches
from slms.measure.pathways import PathwayTables, measure_pathways
from slms.measure.results import losses_of
from slms.measure.rows import by_place
from slms.models.routed import record_routes, routed_modules
from tests.tiny import tiny_config

NAMES = {"pos": ("none", "noun", "verb"), "half": ("first", "second")}


class Words:
    """A tokenizer of 40 made-up words, SentencePiece-like for even ids."""

    def convert_ids_to_tokens(self, ids):
        return [f"▁w{i}" if i % 2 == 0 else f"w{i}" for i in ids]

    def decode(self, ids, **options):
        return "".join(f"w{i}" for i in ids)


@pytest.fixture(scope="module")
def blocks():
    rng = np.random.default_rng(0)
    ids = rng.choice(np.arange(3, 40), (24, 16), p=np.r_[[0.3], np.full(36, 0.7 / 36)])
    documents = np.sort(rng.integers(0, 9, 24 * 16)).reshape(24, 16)
    labels = {"pos": np.where(ids % 5 == 0, -1, ids % 3).astype(np.int16), "half": (ids > 20).astype(np.int16)}
    return Blocks(ids.astype(np.uint16), documents, labels, NAMES)


@pytest.fixture(scope="module")
def model(blocks):
    config = tiny_config(50, intermediate_size=20, max_position_embeddings=32, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    dense = GPTNeoForCausalLM(config)
    routing = slms.RoutingConfig(n_pathways=4, k=2, layers=[1], router_hidden=4)
    return slms.route(dense, routing, torch.from_numpy(blocks.input_ids.astype("int64")))


def _by_hand(model, blocks):
    """Every token's choice, id, classes, document, one by one."""
    rows = []
    for batch in batches(blocks, 5):
        with torch.no_grad(), record_routes(model) as routes:
            model(batch["input_ids"])
        columns = [batch[name].flatten().tolist() for name in ("input_ids", "labels_pos", "labels_half", "doc_ids")]
        rows += zip(routes["L1.mlp"].chosen.tolist(), *columns, strict=True)
    return rows


def test_pathways_are_described_as_counted_by_hand(model, blocks):
    measured = measure_pathways(model, Words(), blocks, 7)
    rows = _by_hand(model, blocks)
    total, value = len(rows), {row.metric: row.value for row in measured.rows if not row.family}
    assert list(measured.pathways) == ["L1.mlp"] and value["chosen_per_token"] == 2.0
    sizes = np.diff(routed_modules(model)["L1.mlp"].offsets)
    assert measured.densities == {"L1.mlp": value["density"]}
    assert value["density"] == pytest.approx(sum(np.dot(chosen, sizes) for chosen, *_ in rows) / total / 20)
    for p, pathway in enumerate(measured.pathways["L1.mlp"]):
        mine = [row for row in rows if row[0][p]]
        assert (pathway.index, pathway.tokens) == (p, len(mine))
        assert pathway.load == pytest.approx(len(mine) / (2 * total))
        known = [row[2] for row in mine if row[2] >= 0]
        for name, share in pathway.profile["pos"].items():
            assert share == pytest.approx(known.count(NAMES["pos"].index(name)) / len(known))
        gains = {}
        for token in {row[1] for row in mine}:
            here, there = [r[1] for r in mine].count(token) / len(mine), [r[1] for r in rows].count(token) / total
            gains[token] = here * math.log(here / there)
            if token == 4:
                found = [t for t in pathway.top_tokens if t.text == " w4"]
                assert all((t.count, t.lift) == (round(here * len(mine)), pytest.approx(here / there)) for t in found)
        best = sorted(gains, key=lambda token: (-round(gains[token], 12), token))[:10]
        assert [t.text for t in pathway.top_tokens] == [
            f" w{i}" if i % 2 == 0 else f"w{i}" for i in best if gains[i] > 0
        ]


@pytest.mark.parametrize("rule", ["top_k", "controlled"])
def test_the_tokens_that_keep_every_unit_are_counted_where_gates_choose(model, blocks, rule):
    torch.manual_seed(0)
    shape = dict(hidden_size=8, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2)
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=32, **shape))
    routing = slms.RoutingConfig(router="gate", n_pathways=20, k=8, layers=[1], rule=rule)
    routed = slms.route(dense, routing, torch.from_numpy(blocks.input_ids.astype("int64")))
    with torch.no_grad(), record_routes(routed) as routes:
        routed(torch.from_numpy(blocks.input_ids.astype("int64")))
    norms = routes["L1.mlp"].scores.norm(dim=1).sort().values
    for above in (math.inf, float(norms[-96] + norms[-97]) / 2):
        routed_modules(routed)["L1.mlp"].router.whole_above.fill_(above)
        row = by_place(measure_pathways(routed, Words(), blocks, 7).rows, "whole")["L1.mlp"]
        assert (row.value, row.n) == (pytest.approx(float((norms > above).float().mean())), 24 * 16)
    assert float((norms > above).float().mean()) >= 1 / 4
    assert not by_place(measure_pathways(model, Words(), blocks, 7).rows, "whole")


def test_every_number_of_a_place_has_its_null_and_tokens(model, blocks):
    rows = measure_pathways(model, Words(), blocks, 7, given_token=["pos"]).rows
    assert {row.n for row in rows if row.metric not in ("si", "si_given_token")} == {24 * 16}
    for row in (by_place(rows, "purity")["L1.mlp"], by_place(rows, "si", "pos")["L1.mlp"]):
        assert None not in (row.value, row.low, row.high, row.null_mean, row.null_sd, row.ceiling)
    assert {row.family for row in rows if row.metric == "si"} == {"pos", "half"}


def test_labels_state_coverage_and_shares(model, blocks):
    labels = measure_pathways(model, Words(), blocks, 7).labels
    assert labels["pos"].coverage == pytest.approx((blocks.labels["pos"] >= 0).mean())
    assert labels["half"].share == pytest.approx(
        {"first": (blocks.input_ids <= 20).mean(), "second": (blocks.input_ids > 20).mean()}
    )


def test_loss_by_document(model, blocks):
    measured = measure_pathways(model, Words(), blocks, 7)
    ids, documents = torch.from_numpy(blocks.input_ids.astype("int64")), torch.from_numpy(blocks.doc_ids)
    with torch.no_grad():
        logits = model(ids).logits.double()
    nll = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    losses = losses_of(measured.loss, None)
    sums = [nll[documents[:, 1:] == document].sum() for document in range(9)]
    assert losses.by_document.nats == pytest.approx([float(x) for x in sums], rel=1e-5)
    assert losses.by_document.tokens == [int((documents[:, 1:] == document).sum()) for document in range(9)]
    assert losses.model.nats == pytest.approx(float(nll.mean()), rel=1e-5)
    assert (losses.model.documents, losses.model.tokens, losses.dense) == (9, 24 * 15, None)


def test_measuring_changes_nothing(model, blocks):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = measure_pathways(model, Words(), blocks, 7), measure_pathways(model, Words(), blocks, 24)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert first.pathways == second.pathways and first.rows == second.rows  # whatever the batch size


def test_dense_models_have_losses_only(blocks):
    config = tiny_config(
        50, num_layers=1, intermediate_size=8, max_position_embeddings=32, bos_token_id=0, eos_token_id=0
    )
    measured = measure_pathways(GPTNeoForCausalLM(config), Words(), blocks, 8)
    assert measured.rows == [] and measured.pathways == {} and int(measured.loss.tokens.sum()) == 24 * 15


def test_token_texts_keep_the_space_that_sentencepiece_drops():
    assert token_texts(Words(), [4, 5]) == [" w4", "w5"]
    assert token_texts(None, [4, 5]) == ["#4", "#5"]


def _rank(rank, world, model, blocks, path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}/sync", rank=rank, world_size=world)
    torch.set_num_threads(1)
    tables = _tables(model, blocks)
    for i, batch in enumerate(batches(blocks, 6)):
        if i % world == rank:
            _feed(tables, model, batch)
    torch.save(repr(tables.compute(Words())), f"{path}/{rank}.pt")
    dist.destroy_process_group()


def _tables(model, blocks):
    return PathwayTables(routed_modules(model), blocks)


def _feed(tables, model, batch):
    with torch.no_grad(), record_routes(model) as routes:
        model(batch["input_ids"])
    tables.update(routes, batch)


@pytest.mark.slow
def test_two_ranks_describe_what_one_describes(model, blocks, tmp_path):
    tables = _tables(model, blocks)
    for batch in batches(blocks, 6):
        _feed(tables, model, batch)
    torch.multiprocessing.spawn(_rank, (2, model, blocks, str(tmp_path)), nprocs=2)
    alone = repr(tables.compute(Words()))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [alone, alone]
