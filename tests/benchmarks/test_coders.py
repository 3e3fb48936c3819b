"""The comparison of coders judges on the test documents, tabulates, and refuses in one line."""

import csv
import shutil
import sys

import pytest
import torch

from benchmarks import coder_sweep
from benchmarks import coders as program
from benchmarks.coder_data import read_rows, read_test_blocks
from benchmarks.coder_judge import SAMPLE, judge, probed, table
from benchmarks.coder_probing import Labelled, site_probes
from benchmarks.coder_sweep import chosen, read_lines, reconstruction, run_name, sweep
from slms.models.base import load_base
from slms.sae.load import load_coder

SMALL = {"d_sae": 64, "k": 4, "batch_size": 64, "steps": 12}


@pytest.fixture(scope="module")
def judged(coders, tmp_path_factory):
    """A dump with a sweep of ours, judged."""
    acts = tmp_path_factory.mktemp("judged") / "acts"
    shutil.copytree(coders / "acts", acts)
    sweep(str(acts), ("ours",), lrs=(1e-3, 1e-2), seeds=(0, 1), **SMALL)
    judge(str(acts), ("pos",))
    return acts


def test_judges_the_chosen_coders_on_the_test_documents(judged):
    *rows, own = read_lines(str(judged), "judged.jsonl")
    assert [run_name(row) for row in rows] == [run_name(row) for row in chosen(read_lines(str(judged)))]
    assert len(rows) == 4
    x = torch.from_numpy(read_rows(str(judged), "test").at(slice(None)).x)
    train, test = (read_rows(str(judged), split).at(slice(SAMPLE)) for split in ("train", "test"))
    of = [Labelled(torch.from_numpy(part.x), torch.from_numpy(part.labels["pos"]).long()) for part in (train, test)]
    probes = site_probes(*of)
    for row in rows:
        coder = load_coder(judged / "coders" / run_name(row))
        wanted = reconstruction(coder, x)
        assert (row["fvu"], row["l0"], row["dead"]) == pytest.approx(tuple(wanted.values()), rel=1e-4)
        assert row["test_tokens"] == len(x)
        wanted = probed(coder, *of, probes)
        assert {name: row[f"{name}_pos"] for name in ("probe1", "probe5", "absorbed")} == wanted
    assert own["library"] == "site's own dimensions" and "fvu" not in own
    assert 0.4 < own["probe1_pos"] <= own["probe_pos"] + 0.1


@torch.no_grad()
def test_loss_added_is_that_of_a_model_with_the_output_in_place(judged, coders):
    row = read_lines(str(judged), "judged.jsonl")[0]
    coder, blocks = load_coder(judged / "coders" / run_name(row)), read_test_blocks(str(judged))
    lm, tokenizer = load_base(str(coders / "base"))
    ids = torch.from_numpy(blocks.input_ids.astype("int64"))

    def loss():
        logits = lm.eval()(ids).logits[:, :-1].double()
        return -logits.log_softmax(-1).gather(2, ids[:, 1:, None]).mean().item()

    def replace(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        new = coder.reconstruct(hidden.flatten(0, 1)).view(hidden.shape)
        new = torch.where((ids == tokenizer.eos_token_id)[..., None], hidden, new)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    clean = loss()
    handle = lm.transformer.h[0].register_forward_hook(replace)
    added = loss() - clean
    handle.remove()
    assert (row["ce_clean"], row["ce_added"]) == pytest.approx((clean, added), abs=1e-5) and abs(added) > 1e-4


def test_table_and_csv(judged, tmp_path, capsys):
    table((str(judged),), str(tmp_path / "rows.csv"))
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert "fvu" in head and "absorbed_pos" in head and len(lines) == 3
    rows = read_lines(str(judged), "judged.jsonl")
    fvus = [row["fvu"] for row in rows if row.get("kind") == "topk"]
    assert f"{sum(fvus) / 2:.4f} [{min(fvus):.4f}, {max(fvus):.4f}]" in next(line for line in lines if " topk" in line)
    with (tmp_path / "rows.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert len(kept) == len(read_lines(str(judged))) + 1
    assert sum(row["fvu"] != "" for row in kept) == 4
    assert all(float(row["valid_fvu"]) > 0 for row in kept if row["kind"])


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["coders", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dump", "{base}", "{new}", "--site=residual.9"], "residual.1"),
        (["dump", "{base}", "{new}", "--site=residual.0", "--n_train=900", "--n_valid=20"], "--n_valid 20"),
        (["sweep", "{dump}", "--libraries=[ours]", "--batch_size=100000"], "--batch_size 100000"),
        (["sweep", "{dump}", "--libraries=[ours]", "--batch_size=64", "--d_sae=3"], "coder.k is 6"),
        (["sweep", "{dump}", "--libraries=[ours]", "--lrs=[1e-3]"], "at least two rates"),
        (["sweep", "{new}", "--libraries=[ours]"], "new"),
        (["judge", "{dump}"], "rows.jsonl: no run"),
        (["judge", "{acts}", "--families=[colour]"], "--families colour"),
        (["table", "[{dump}]"], "judged.jsonl: no row"),
    ],
)
def test_refuses_in_one_line(coders, judged, tmp_path, arguments, said, monkeypatch, capsys):
    paths = {"base": coders / "base", "dump": coders / "acts", "acts": judged, "new": tmp_path / "new"}
    assert said in command(monkeypatch, capsys, *(a.format(**paths) for a in arguments))
    assert not (coders / "acts/rows.jsonl").exists()


def test_refuses_a_library_that_is_not_installed(judged, monkeypatch, capsys):
    monkeypatch.setitem(coder_sweep.PACKAGES, "saelens", "no_such_package")
    line = command(monkeypatch, capsys, "sweep", judged, "--libraries=[saelens]")
    assert "--libraries saelens: no_such_package is not installed" in line
