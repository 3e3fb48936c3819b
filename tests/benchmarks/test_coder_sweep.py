"""The sweep chooses each library's rate on validation documents, continues, and refuses what it cannot do."""

import json
import shutil

import pytest
import torch

from benchmarks import coder_sweep
from benchmarks.coder_sweep import best_rate, chosen, read_lines, run_name, set_threshold, sweep, validated
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.load import load_coder

N, D, S, K = 13, 5, 9, 2
SMALL = {"d_sae": 64, "k": 4, "batch_size": 64, "steps": 12}


def coder_of(kind):
    torch.manual_seed(1)
    coder = build_coder(CoderConfig(kind=kind, d_sae=S, k=K), D).eval().requires_grad_(False)
    coder.W_enc.copy_(torch.randn(S, D))
    coder.b_enc.copy_(torch.randn(S))
    coder.b_dec.copy_(torch.randn(D))
    return coder


def slow(coder, x, used):
    """FVU, L0 and dead share, one token and one latent at a time; `used` says whether a value of a row is in use."""
    pre = ((x - coder.b_dec) @ coder.W_enc.T + coder.b_enc).tolist()
    acts = [[max(v, 0.0) if used(v, row) else 0.0 for v in row] for row in pre]
    y = [[coder.b_dec[j] + sum(a * coder.W_dec[i, j] for i, a in enumerate(row)) for j in range(D)] for row in acts]
    mean = [sum(float(row[j]) for row in x) / N for j in range(D)]
    error = sum(float(x[i, j] - y[i][j]) ** 2 for i in range(N) for j in range(D))
    variance = sum((float(x[i, j]) - mean[j]) ** 2 for i in range(N) for j in range(D))
    l0 = sum(a > 0 for row in acts for a in row) / N
    dead = sum(all(row[i] == 0 for row in acts) for i in range(S)) / S
    return error / variance, l0, dead


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_validates_as_the_definition_does(kind):
    coder, x = coder_of(kind), torch.randn(N, D)
    if kind == "topk":
        left = even = slow(coder, x, lambda v, row: sorted(row, reverse=True).index(v) < K)
    else:
        coder.threshold.fill_(1.0)
        left = slow(coder, x, lambda v, row: v > 1)
        pre = ((x - coder.b_dec) @ coder.W_enc.T + coder.b_enc).flatten().tolist()
        even = slow(coder, x, lambda v, row: sorted(pre, reverse=True).index(v) < K * N)
    found = validated(coder, x, K)
    assert (found["own_fvu"], found["own_l0"]) == pytest.approx(left[:2], rel=1e-5)
    assert (found["valid_fvu"], found["valid_l0"], found["valid_dead"]) == pytest.approx(even, rel=1e-5)
    assert kind == "topk" or (found["valid_l0"] == K and found["own_l0"] != K)


def test_a_threshold_is_never_below_zero():
    coder = coder_of("batch_topk")
    coder.b_enc.fill_(-100.0)
    set_threshold(coder, torch.randn(N, D), K)
    assert coder.threshold == 0


@pytest.mark.parametrize(
    ("best", "wanted", "tried"),
    [
        (0.01, 0.01, 4),
        (0.09, 0.09, 5 + 1),  # .03 is best of the grid, then .09, then .3 is worse
        (0.0003, 0.0003, 5 + 1),
        (1e9, 1.0, 4 + 3),  # there is an end to it
    ],
)
def test_the_grid_grows_until_the_best_rate_is_inside(best, wanted, tried):
    seen = []

    def error(rate):
        seen.append(rate)
        return abs(torch.tensor(rate / best).log().item())

    found = best_rate(error, (0.001, 0.003, 0.01, 0.03))
    assert found == pytest.approx(wanted, rel=0.25) and len(seen) == tried == len(set(seen))


def test_a_rate_that_diverges_is_never_the_best():
    assert best_rate(lambda rate: float("nan") if rate > 0.01 else 1 / rate, (0.001, 0.01, 0.1)) == 0.01


def test_chooses_by_validation_of_the_first_seed():
    def row(library, lr, seed, fvu):
        return {"kind": "topk", "library": library, "lr": lr, "seed": seed, "valid_fvu": fvu, "fvu": -fvu}

    rows = [row("a", 1, 0, 0.3), row("a", 2, 0, 0.2), row("a", 2, 1, 0.9), row("b", 1, 0, 0.1), row("a", 1, 1, 0.0)]
    assert [(one["library"], one["lr"], one["seed"]) for one in chosen(rows)] == [("a", 2, 0), ("a", 2, 1), ("b", 1, 0)]


@pytest.fixture(scope="module")
def swept(coders, tmp_path_factory):
    """A dump without its test documents, and what a sweep with ours made of it."""
    acts = tmp_path_factory.mktemp("swept")
    for name in ("about.json", "train.npy", "train_rows.npz", "valid.npy", "valid_rows.npz"):
        shutil.copy(coders / "acts" / name, acts / name)
    sweep(str(acts), ("ours",), lrs=(1e-3, 1e-2), seeds=(0, 1), **SMALL)
    return acts


def test_a_sweep_reads_no_test_document_and_repeats_the_best_rate(swept):
    rows = read_lines(str(swept))
    for kind in ("topk", "batch_topk"):
        first = [row for row in rows if row["kind"] == kind and row["seed"] == 0]
        others = [row for row in rows if row["kind"] == kind and row["seed"] == 1]
        best = min(first, key=lambda row: row["valid_fvu"])["lr"]
        assert len(first) >= 3 and [row["lr"] for row in others] == [best]
        assert min(row["lr"] for row in first) < best or len(first) == 2 + coder_sweep.MOST_BEYOND
    assert {row["model"] for row in rows} == {"base"} and all(row["k"] == 4 for row in rows)


def test_saved_coders_are_those_that_were_validated(swept):
    x = torch.from_numpy(coder_sweep.read_rows(str(swept), "valid").at(slice(None)).x)
    for row in read_lines(str(swept)):
        coder = load_coder(swept / "coders" / run_name(row))
        found = coder_sweep.reconstruction(coder, x)
        assert (found["fvu"], found["l0"]) == pytest.approx((row["valid_fvu"], row["valid_l0"]), rel=1e-5)
        if row["kind"] == "batch_topk":  # too few latents above 0 are all in use
            assert abs(found["l0"] - 4) < 0.01 or (found["l0"] < 4 and coder.threshold.max() == 0)


def test_a_killed_sweep_goes_on_where_it_stopped(swept, tmp_path, monkeypatch):
    shutil.copytree(swept, tmp_path / "acts")
    lines = (swept / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "acts/rows.jsonl").write_text("".join(lines[:-1]))
    trained, ours = [], coder_sweep.LIBRARIES["ours"]
    monkeypatch.setitem(coder_sweep.LIBRARIES, "ours", lambda task: trained.append(task) or ours(task))
    sweep(str(tmp_path / "acts"), ("ours",), lrs=(1e-3, 1e-2), seeds=(0, 1), **SMALL)
    assert len(trained) == 1
    again = [json.loads(line) | {"cpu_seconds": 0} for line in (tmp_path / "acts/rows.jsonl").read_text().splitlines()]
    assert again == [json.loads(line) | {"cpu_seconds": 0} for line in lines]


def test_refuses_another_setting(swept):
    with pytest.raises(ValueError, match="holds coders with d 32, d_sae 64, k 4"):
        sweep(str(swept), ("ours",), **SMALL | {"k": 5})
