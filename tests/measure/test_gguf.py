"""A GGUF file is kept only if it holds the model: its tensors always, its logits where llama.cpp is installed."""

import pytest
import torch

import slms
from slms.measure import gguf as measured
from slms.measure.gguf import as_experts, export_gguf, time_models
from slms.measure.llama_cpp import absent
from slms.measure.llama_cpp import build as build_of_llama_cpp
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


def routed(**options):
    """The tiny Llama without biases, every MLP routed, as 4 pathways of width 16."""
    config = slms.RoutingConfig(
        n_pathways=4, k=2, every_n_layers=1, partition="random", router_init="random", **options
    )
    return slms.route(build("llama-tied"), config, IDS).eval()


def test_a_routed_model_becomes_the_mixture_that_it_is():
    model, dense = routed(stock=True), build("llama-tied")
    mixture = as_experts(model)
    assert mixture.config.model_type == "mixtral" and mixture.config.num_experts_per_tok == 2
    torch.testing.assert_close(mixture(IDS % 256).logits, model(IDS % 256).logits, atol=1e-5, rtol=1e-4)
    assert as_experts(dense) is dense
    with pytest.raises(ValueError, match=r"no mixtral: .*--model\.routing\.gate=softmax"):
        as_experts(routed(gate="unit"))


@installed
def test_a_routed_model_is_timed_or_has_the_reason():
    models = {"dense": build("llama-tied"), "stock": routed(stock=True), "other": routed(gate="unit")}
    timed = {(one.model, one.type): one for one in time_models(models, byte_level(), 16)}
    assert timed["stock", "f32"].times.decode > 0 and timed["stock", "f32"].times.build == build_of_llama_cpp()
    assert "must be a multiple of 32" in timed["stock", "q8_0"].why_not  # a pathway has 16 neurons
    assert all("this model is no mixtral" in timed["other", type].why_not for type in ("f32", "q8_0"))


@installed
def test_models_are_timed_in_turns_and_a_shape_without_q8_0_says_so():
    model = build("llama")
    timed = time_models({"dense": model, "routed": build("mixtral")}, byte_level(), 16)
    assert [(one.model, one.type) for one in timed] == [
        (name, type) for name in ("dense", "routed") for type in ("f32", "q8_0")
    ]
    assert all(one.times is not None and one.times.decode > 0 for one in timed)
