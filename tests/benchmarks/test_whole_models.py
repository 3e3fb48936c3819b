"""The comparison of whole models runs on a tiny Llama, here and in llama.cpp, and obeys its flags."""

import pytest
import torch

from benchmarks import whole_models
from slms.measure.gguf import Timed
from slms.measure.llama_cpp import Times, absent
from slms.models.base import Base
from slms.models.routed import record_routes, routed_modules
from tests.models.test_to_gguf import build, byte_level

pytest.importorskip("gguf", reason="the package gguf is not installed")


def test_every_model_has_a_row_in_each_engine(monkeypatch, capsys):
    monkeypatch.setattr(whole_models, "load_base", lambda name: Base(build("llama-tied"), byte_level()))
    whole_models.main(["--n_pathways=2", "--k", "1", "2", "--density", "0.5", "--prompt=16", "--seconds=0"])
    lines = capsys.readouterr().out.splitlines()
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert found[0][:2] == ["transformers fp32", "dense"] and float(found[0][2]) > 0
    found, names = found[1:], ["dense", "1 of 2", "2 of 2"]
    assert [row[1] for row in found[:5]] == [*names, "gate, 0.5", "gate twice, 0.6 and 0.4"]
    assert found[0][3] == found[0][5] == "1.00" and all(float(row[2]) > 0 and float(row[4]) > 0 for row in found[:5])
    assert [row[1] for row in found[5:]] == [name for name in names for _ in range(2)]
    for row in found[5:]:
        assert float(row[2]) > 0 if absent(times_only=True) is None else row[2] == absent(times_only=True)


@pytest.mark.parametrize(("into", "out"), [(0.5, None), (0.6, 0.4)])
def test_gates_choose_their_share_by_thresholds(into, out):
    dense, ids = build("llama-tied").eval(), torch.randint(3, 32, (1, 64), generator=torch.Generator().manual_seed(0))
    model = whole_models.gate_routed(dense, ids, into, out)
    modules = routed_modules(model)
    assert len(modules) == dense.config.num_hidden_layers
    with torch.no_grad(), record_routes(model) as routes:
        model(ids)
    for place, module in modules.items():
        assert module.router.by_threshold(module.k) and module.router.least > 0
        found = routes[place]
        assert found.chosen.float().mean().item() == pytest.approx(into, abs=0.02)
        if out is not None:
            assert found.through.float().mean().item() / found.chosen.shape[1] == pytest.approx(out, abs=0.02)


def test_speeds_in_llama_cpp_stand_in_their_columns(monkeypatch, capsys):
    times = {"dense": Times(300.0, 40.0, "llama_decode; a.gguf", "b1"), "1 of 2": Times(360.0, 60.0, "", "b1")}
    monkeypatch.setattr(whole_models, "load_base", lambda name: Base(build("llama-tied"), byte_level()))
    monkeypatch.setattr(
        whole_models, "time_models", lambda models, *_: [Timed(name, "f32", times[name]) for name in models]
    )
    whole_models.main(["--n_pathways=2", "--k=1", "--density", "--prompt=16", "--seconds=0"])
    found = [line for line in capsys.readouterr().out.splitlines() if "llama.cpp F32" in line]
    assert found == [
        "| llama.cpp F32 | dense | 40.0 | 1.00 | 300.0 | 1.00 |",
        "| llama.cpp F32 | 1 of 2 | 60.0 | 1.50 | 360.0 | 1.20 |",
    ]


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [("llama", ["--n_pathways=2", "--k=1"], "attention_bias"), ("llama-tied", ["--n_pathways=2", "--k=4"], "k")],
)
def test_a_base_that_cannot_be_routed_so_is_one_line(monkeypatch, capsys, name, flags, named):
    monkeypatch.setattr(whole_models, "load_base", lambda base: Base(build(name), byte_level()))
    with pytest.raises(SystemExit) as stop:
        whole_models.main([*flags, "--seconds=0"])
    assert stop.value.code == 2 and named in capsys.readouterr().err.splitlines()[-1]
