"""A GGUF file is kept only if it holds the model: its tensors always, its logits where llama.cpp is installed."""

import pytest
import torch

from slms.measure import gguf as measured
from slms.measure.gguf import export_gguf, time_models
from slms.measure.llama_cpp import absent
from tests.models.test_to_gguf import build, byte_level

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
installed = pytest.mark.skipif(absent() is not None, reason=str(absent()))
IDS = torch.randint(0, 257, (2, 48), generator=torch.Generator().manual_seed(0))


@installed
@pytest.mark.parametrize("name", ["llama", "llama-tied", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"])
def test_llama_cpp_computes_what_every_family_computes(name, tmp_path):
    found = export_gguf(build(name), byte_level(), tmp_path / "m.gguf", IDS)
    assert found.equal("f32") and abs(found.exported / found.perplexity - 1) < 1e-4 and found.argmax == 1
    assert (tmp_path / "m.gguf").is_file() and len(list(tmp_path.iterdir())) == 1


def test_without_llama_cpp_the_tensors_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "absent", lambda times_only=False: "llama.cpp is away")
    for type in ("f32", "q8_0"):
        found = export_gguf(build("mixtral"), byte_level(), tmp_path / f"{type}.gguf", IDS, type)
        assert found.engine == "llama.cpp is away; only the stored tensors were compared" and found.equal(type)
    with pytest.raises(ValueError, match=r"f32\.gguf exists; it is not replaced"):
        export_gguf(build("mixtral"), byte_level(), tmp_path / "f32.gguf", IDS)
    [one, two] = time_models({"dense": build("llama")}, byte_level(), 16)
    assert (one.type, two.type) == ("f32", "q8_0") and one.times is None and one.why_not == "llama.cpp is away"


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    write = measured.write_gguf
    monkeypatch.setattr(measured, "absent", lambda times_only=False: "llama.cpp is away")
    monkeypatch.setattr(measured, "write_gguf", lambda model, *rest: write(build("llama-tied"), *rest))
    model = build("llama-tied")
    model.model.norm.weight.data[3] += 1e-3
    with pytest.raises(ValueError, match=r"output_norm.weight was not written as it is"):
        export_gguf(model, byte_level(), tmp_path / "m.gguf", IDS)
    assert not list(tmp_path.iterdir())


@installed
def test_models_are_timed_in_turns_and_a_shape_without_q8_0_says_so():
    model = build("llama")
    timed = time_models({"dense": model, "routed": build("mixtral")}, byte_level(), 16)
    assert [(one.model, one.type) for one in timed] == [
        (name, type) for name in ("dense", "routed") for type in ("f32", "q8_0")
    ]
    assert all(one.times is not None and one.times.decode > 0 for one in timed)
