"""The comparison of whole models runs on a tiny Llama, here and in llama.cpp, and obeys its flags."""

import pytest

from benchmarks import whole_models
from slms.measure.llama_cpp import absent
from slms.models.base import Base
from tests.models.test_to_gguf import build, byte_level

pytest.importorskip("gguf", reason="the package gguf is not installed")


def test_every_model_has_a_row_in_each_engine(monkeypatch, capsys):
    monkeypatch.setattr(whole_models, "load_base", lambda name: Base(build("llama-tied"), byte_level()))
    whole_models.main(["--n_pathways=2", "--k", "1", "2", "--density", "0.5", "--prompt=16", "--seconds=0"])
    lines = capsys.readouterr().out.splitlines()
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert found[0][:2] == ["transformers fp32", "dense"] and float(found[0][2]) > 0
    found, names = found[1:], ["dense", "1 of 2", "2 of 2"]
    assert [row[1] for row in found[:4]] == [*names, "gate, 0.5"] and found[0][3] == found[0][5] == "1.00"
    assert all(float(row[2]) > 0 and float(row[4]) > 0 for row in found[:4])
    assert [row[1] for row in found[4:]] == [name for name in names for _ in range(2)]
    for row in found[4:]:
        assert float(row[2]) > 0 if absent(times_only=True) is None else row[2] == absent(times_only=True)


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [("llama", ["--n_pathways=2", "--k=1"], "attention_bias"), ("llama-tied", ["--n_pathways=2", "--k=4"], "k")],
)
def test_a_base_that_cannot_be_routed_so_is_one_line(monkeypatch, capsys, name, flags, named):
    monkeypatch.setattr(whole_models, "load_base", lambda base: Base(build(name), byte_level()))
    with pytest.raises(SystemExit) as stop:
        whole_models.main([*flags, "--seconds=0"])
    assert stop.value.code == 2 and named in capsys.readouterr().err.splitlines()[-1]
