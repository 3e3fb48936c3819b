"""The comparison with other libraries dumps, judges, tabulates and refuses as it says."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import coders
from benchmarks.coder_rivals import Trained
from slms.models.base import load_base
from slms.models.sites import find_site, read_sites
from tests.processes import make_base

N, D, S, K = 13, 5, 9, 2


def slow(trained, x, k):
    """FVU, L0, FVU at k and dead share, one token and one latent at a time."""
    pre = trained.pre(x).tolist()
    ranked = sorted((value for row in pre for value in row), reverse=True)
    own = [[0.0] * S for _ in pre]
    even = [[0.0] * S for _ in pre]
    for i, row in enumerate(pre):
        for j, value in enumerate(row):
            if trained.threshold is None:
                own[i][j] = even[i][j] = value if sorted(row, reverse=True).index(value) < k else 0.0
            else:
                own[i][j] = value if value > trained.threshold else 0.0
                even[i][j] = value if ranked.index(value) < k * len(pre) else 0.0

    def fvu(acts):
        y = trained.decode(torch.tensor(acts))
        mean = [sum(float(row[j]) for row in x) / len(x) for j in range(D)]
        error = sum(float(x[i, j] - y[i, j]) ** 2 for i in range(len(x)) for j in range(D))
        return error / sum((float(x[i, j]) - mean[j]) ** 2 for i in range(len(x)) for j in range(D))

    l0 = sum(value > 0 for row in own for value in row) / len(x)
    dead = sum(all(row[j] == 0 for row in own) for j in range(S)) / S
    return {"fvu": fvu(own), "l0": l0, "fvu_at_k": fvu(even), "dead": dead}


@pytest.mark.parametrize("threshold", [None, 1.0, 2.5])
def test_judges_as_the_definition_does(threshold):
    generator = torch.Generator().manual_seed(0)
    W, b, x = torch.randn(D, S, generator=generator), torch.randn(S, generator=generator), torch.randn(N, D)
    trained = Trained(lambda x: (x @ W + b).relu(), lambda acts: acts @ W.T / D + 0.1, threshold)
    found, wanted = coders.judge(trained, x, K), slow(trained, x, K)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert 0 < found["l0"] < S and found["fvu"] != 1
    if threshold is None:
        assert found["fvu"] == found["fvu_at_k"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small model and a dump of its first layer."""
    folder = tmp_path_factory.mktemp("coders")
    make_base(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coders, "N_TEST", 200)
        coders.dump(str(folder / "base"), str(folder / "acts"), "residual.0", n_tokens=1500)
    return folder


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["coders", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        coders.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_dump_holds_each_token_once_and_no_special_ones(made):
    about = json.loads((made / "acts/about.json").read_text())
    train, test = (np.load(made / f"acts/{name}.npy") for name in ("train", "test"))
    assert (about["train"], about["test"], about["site"]) == (len(train), len(test), "residual.0")
    assert len(test) == 200 and train.shape[1] == test.shape[1] == 32
    model, tokenizer = load_base(str(made / "base"))
    blocks = coders.load_blocks(coders.BlockSpec("stories", "train", None, "text", 0, 64, 1500, False), tokenizer)
    ids = torch.from_numpy(blocks.input_ids.astype("int64"))
    x = read_sites(model.eval(), ids, [find_site(model, "residual.0")])["residual.0"]
    wanted = x[ids.flatten() != tokenizer.eos_token_id].numpy()
    assert len(wanted) < len(x)
    found = np.concatenate([test, train])
    assert np.abs(np.sort(found, axis=0) - np.sort(wanted, axis=0)).max() < 1e-5
    assert np.abs(found - wanted).max() > 0.1  # another order


def test_train_and_table(made, capsys):
    acts, out = str(made / "acts"), str(made / "results.jsonl")
    options = {"d_sae": 64, "k": 4, "batch_size": 64, "steps": 12}
    coders.train(acts, out, ("ours",), seeds=(0, 1), lrs=(None, 1e-3), **options)
    rows = [json.loads(line) for line in (made / "results.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["kind"], row["lr"]) for row in rows] == [
        (seed, kind, lr) for seed in (0, 1) for kind in ("topk", "batch_topk") for lr in (None, 1e-3)
    ]
    coders.train(acts, out, ("ours",), ("topk",), seeds=(0,), **options)
    again = json.loads((made / "results.jsonl").read_text().splitlines()[-1])
    assert again | {"cpu_seconds": 0} == rows[0] | {"cpu_seconds": 0}
    capsys.readouterr()
    (made / "some.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    coders.table(str(made / "some.jsonl"))
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert "FVU at k" in head and len(lines) == 4
    (own,) = [line for line in lines if " topk" in line and " own " in line]
    assert own.split()[6:9] == ["2", f"{rows[0]['fvu_at_k']:.4f}", f"{rows[4]['fvu_at_k']:.4f}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dump", "{base}", "{acts}", "--site=residual.9"], "residual.1"),
        (["dump", "{base}", "{acts}", "--site=residual.0", "--n_tokens=900"], "--n_tokens 900"),
        (["train", "{acts}", "{out}", "--batch_size=100000"], "--batch_size 100000"),
        (["train", "{acts}", "{out}", "--batch_size=64", "--d_sae=3", "--k=4"], "coder.k is 4"),
        (["train", "{nowhere}", "{out}"], "nowhere"),
        (["table", "{nowhere}"], "nowhere"),
    ],
)
def test_refuses_in_one_line(made, arguments, said, monkeypatch, capsys):
    paths = {"base": made / "base", "acts": made / "acts", "out": made / "none.jsonl", "nowhere": made / "nowhere"}
    assert said in command(monkeypatch, capsys, *(a.format(**paths) for a in arguments))
    assert not (made / "none.jsonl").exists()


def test_refuses_a_library_that_is_not_installed(made, monkeypatch, capsys):
    monkeypatch.setitem(coders.PACKAGES, "saelens", "no_such_package")
    line = command(monkeypatch, capsys, "train", made / "acts", made / "none.jsonl", "--libraries=[saelens]")
    assert "--libraries saelens: no_such_package is not installed" in line
