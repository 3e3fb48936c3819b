"""A GGUF file is kept only if it holds the model: its tensors always, its logits where llama.cpp is installed."""

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import LlamaConfig

import slms
from slms.measure import gguf as measured
from slms.measure.gguf import as_experts, export_gguf, time_models
from slms.measure.llama_cpp import Times, absent
from slms.measure.llama_cpp import build as build_of_llama_cpp
from tests.models.test_to_gguf import CONFIGS, SHAPE, WIDTHS, build, byte_level

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
installed = pytest.mark.skipif(absent() is not None, reason=str(absent()))
IDS = torch.randint(0, 257, (2, 48), generator=torch.Generator().manual_seed(0))


@installed
@pytest.mark.parametrize("name", ["llama", "llama-tied", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"])
def test_llama_cpp_computes_what_every_family_computes(name, tmp_path):
    found = export_gguf(build(name), byte_level(), tmp_path / "m.gguf", IDS)
    assert found.equal("f32") and abs(found.exported / found.perplexity - 1) < 1e-4 and found.argmax == 1
    assert (tmp_path / "m.gguf").is_file() and len(list(tmp_path.iterdir())) == 1


@installed
@pytest.mark.parametrize("name", ["llama-tied", "mixtral", "qwen3_moe"])
def test_llama_cpp_computes_the_same_with_neurons_of_zeros(name, tmp_path, monkeypatch):
    narrow = type(CONFIGS[name])(**CONFIGS[name].to_dict() | dict.fromkeys(WIDTHS & CONFIGS[name].to_dict().keys(), 20))
    monkeypatch.setitem(CONFIGS, name, narrow)
    found = export_gguf(build(name), byte_level(), tmp_path / "m.gguf", IDS, "q8_0")
    assert found.equal("q8_0") and found.exported is not None


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
    options = {"every_n_layers": 1} | options
    config = slms.RoutingConfig(n_pathways=4, k=2, partition="random", router_init="random", **options)
    return slms.route(build("llama-tied"), config, IDS).eval()


def test_a_routed_model_becomes_the_mixture_that_it_is():
    model, dense = routed(stock=True), build("llama-tied")
    mixture = as_experts(model)
    assert mixture.config.model_type == "mixtral" and mixture.config.num_experts_per_tok == 2
    torch.testing.assert_close(mixture(IDS % 256).logits, model(IDS % 256).logits, atol=1e-5, rtol=1e-4)
    assert as_experts(dense) is dense
    with pytest.raises(ValueError, match=r"no mixtral: .*--model\.routing\.gate=softmax"):
        as_experts(routed(gate="unit"))


def test_no_advice_leads_away_from_gguf():
    with pytest.raises(ValueError) as refused:
        as_experts(routed(gate="softmax", layers=[0], n_shared=1, every_n_layers=2))
    said = str(refused.value)
    assert said.startswith("this model has no GGUF form, since it is no mixtral: ") and "--format" not in said
    assert "--model.routing.n_shared=0" in said and "--model.routing.every_n_layers=1" in said
    for name, words in (("qwen2", "a routed qwen2 has no GGUF form"), ("qwen3", r"layer 1 is dense \(--model")):
        one = slms.route(build(name), slms.RoutingConfig(n_pathways=4, k=2, layers=[0], stock=True))
        with pytest.raises(ValueError, match=words) as refused:
            as_experts(one)
        assert "--format" not in str(refused.value)


def test_a_narrow_pathway_is_timed_in_q8_0_and_a_narrow_model_has_the_reason(monkeypatch):
    monkeypatch.setattr(measured, "absent", lambda times_only=False: None)
    monkeypatch.setattr(measured, "in_turns", lambda files, *rest: [Times(1.0, 2.0, "", "") for _ in files])
    timed = time_models({"stock": routed(stock=True)}, byte_level(), 16)
    assert [one.times.decode for one in timed] == [2.0, 2.0]
    narrow = Auto.from_config(LlamaConfig(**SHAPE | {"hidden_size": 40}))
    one, two = time_models({"narrow": narrow}, byte_level(), 16)
    assert one.times.decode == 2.0 and two.why_not.startswith("d_model is 40, and Q8_0 stores 32 weights of a row")


@installed
def test_a_routed_model_is_timed_or_has_the_reason():
    models = {"dense": build("llama-tied"), "stock": routed(stock=True), "other": routed(gate="unit")}
    timed = {(one.model, one.type): one for one in time_models(models, byte_level(), 16)}
    assert timed["stock", "f32"].times.decode > 0 and timed["stock", "f32"].times.build == build_of_llama_cpp()
    assert timed["stock", "q8_0"].times.decode > 0  # though a pathway has 16 neurons
    assert all("it is no mixtral" in timed["other", type].why_not for type in ("f32", "q8_0"))


@installed
def test_models_are_timed_in_turns_and_a_shape_without_q8_0_says_so():
    model = build("llama")
    timed = time_models({"dense": model, "routed": build("mixtral")}, byte_level(), 16)
    assert [(one.model, one.type) for one in timed] == [
        (name, type) for name in ("dense", "routed") for type in ("f32", "q8_0")
    ]
    assert all(one.times is not None and one.times.decode > 0 for one in timed)
