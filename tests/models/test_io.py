"""Saving and loading: the same logits back, whole or absent, and one clear line for what cannot be loaded."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

import slms
from slms.models.checksums import CHECKSUMS
from slms.models.convert import route
from slms.models.io import load_model, save_model
from slms.models.routed import routed_modules
from slms.models.transformers_internals import SDPASelfAttention
from slms.routing import RoutingConfig


@pytest.fixture
def config():
    return RoutingConfig(n_pathways=5, k=2, router="mlp", router_hidden=8, router_init="random", mean_compensation=True)


def test_routed_models_load_with_equal_logits_by_both_ways(tiny, tokens, family, config, tmp_path):
    model, ids = tiny(family), tokens(2, 11)
    routed = route(model, config, tokens(4, 16))
    for layer in routed_modules(routed).values():
        layer.router.selection_bias.normal_()
    routed.generation_config.max_new_tokens = 3
    save_model(routed, None, tmp_path / "m")
    loaded, tokenizer = load_model(tmp_path / "m")
    by_auto = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    expected = routed(ids).logits
    assert tokenizer is None and type(loaded) is type(by_auto) is type(routed)
    assert torch.equal(loaded(ids).logits, expected)
    torch.testing.assert_close(by_auto(ids).logits, expected, atol=1e-6, rtol=1e-6)
    assert loaded.generation_config.max_new_tokens == 3
    assert list(loaded.state_dict()) == list(routed.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), routed.state_dict().values(), strict=True)
    )
    assert routed_modules(loaded)["L0.mlp"].offsets == routed_modules(routed)["L0.mlp"].offsets


def test_dense_models_load_with_equal_logits_and_fast_attention(tiny, tokens, family, tmp_path):
    model, ids = tiny(family), tokens(2, 11)
    save_model(model, None, tmp_path / "m")
    loaded = load_model(tmp_path / "m").model
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    if family == "gpt_neo":
        assert type(loaded.transformer.h[0].attn.attention) is SDPASelfAttention


def test_saving_what_was_loaded_gives_the_same_files(tiny, tokens, config, tmp_path):
    save_model(route(tiny("gpt_neo"), config, tokens(4, 16)), None, tmp_path / "a")
    save_model(load_model(tmp_path / "a").model, None, tmp_path / "b")
    a, b = (load_file(tmp_path / d / "model.safetensors") for d in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())


def test_dtype_is_kept_or_chosen(tiny, tmp_path):
    save_model(tiny("llama").bfloat16(), None, tmp_path / "m")
    assert load_model(tmp_path / "m").model.dtype == torch.bfloat16
    assert load_model(tmp_path / "m", torch.float32).model.dtype == torch.float32


def test_a_tokenizer_comes_back(shared_data, tmp_path):
    model, tokenizer = slms.load_base(shared_data / "stories260K")
    slms.save_model(model, tokenizer, tmp_path / "m")
    again = slms.load_model(tmp_path / "m").tokenizer
    assert again("Once upon a time").input_ids == tokenizer("Once upon a time").input_ids == [1, 403, 407, 261, 378]
    assert (again.bos_token_id, again.eos_token_id) == (1, 2)


def test_a_model_is_replaced_as_a_whole(tiny, tokens, tmp_path):
    ids = tokens(1, 5)
    save_model(tiny("gpt2"), None, tmp_path / "m")
    save_model(tiny("gpt2", seed=1), None, tmp_path / "m")
    torch.testing.assert_close(load_model(tmp_path / "m").model(ids).logits, tiny("gpt2", seed=1)(ids).logits)
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("first", [False, True])
def test_a_failure_while_writing_leaves_everything_as_it_was(tiny, tokens, tmp_path, monkeypatch, first):
    ids, model = tokens(1, 5), tiny("gpt2")
    if not first:
        save_model(model, None, tmp_path / "m")

    class FullDisk:
        def save_pretrained(self, directory):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_model(tiny("gpt2", seed=1), FullDisk(), tmp_path / "m")
    assert os.listdir(tmp_path) == ([] if first else ["m"])
    if not first:
        torch.testing.assert_close(load_model(tmp_path / "m").model(ids).logits, model(ids).logits)


def test_a_directory_that_holds_something_else_is_not_replaced(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="it exists and holds no model, so it is not replaced"):
        save_model(tiny("gpt2"), None, tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    save_model(tiny("gpt2"), None, tmp_path / "empty")


def test_missing_and_misshapen_weights_are_named_never_filled_in(tiny, tokens, config, tmp_path):
    save_model(route(tiny("llama"), config, tokens(4, 16)), None, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    (tmp_path / "m" / CHECKSUMS).unlink()  # as for weights that were changed on purpose
    weights = load_file(file)
    name = "model.layers.0.mlp.router.out.weight"
    save_file({k: v for k, v in weights.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are missing or of another shape than configured, as {name}"):
        load_model(tmp_path / "m")
    save_file(weights | {name: torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name):
        load_model(tmp_path / "m")


def test_truncated_files_and_missing_directories_are_one_line(tiny, tmp_path):
    save_model(tiny("gpt2"), None, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is truncated") as caught:
        slms.load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="is no directory"):
        slms.load_model(tmp_path / "absent")


def test_a_routed_config_with_a_routing_that_cannot_be_is_refused(tiny, tokens, config, tmp_path):
    save_model(route(tiny("llama"), config, tokens(4, 16)), None, tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "config.json").read_text())
    for routing, message in (
        ({**stored["routing"], "k": 9}, "`routing.k` is 9; it must be at most `routing.n_pathways`"),
        ({**stored["routing"], "topk": 1}, "`routing.topk` is not a routing option"),
        (None, "`routing` of a routed_llama configuration is None; it must be a mapping"),
    ):
        (tmp_path / "m" / "config.json").write_text(json.dumps({**stored, "routing": routing}))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "m")


def test_loading_is_silent(tiny, tmp_path, capfd):
    save_model(tiny("gpt_neo"), None, tmp_path / "m")
    load_model(tmp_path / "m")
    assert capfd.readouterr() == ("", "")


def test_files_have_the_mode_that_the_umask_leaves(tiny, tmp_path):
    before = os.umask(0o027)
    try:
        save_model(tiny("gpt2"), None, tmp_path / "m")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "m", *(tmp_path / "m").iterdir())}
    assert modes.pop("m") == 0o750 and set(modes.values()) == {0o640} and "model.safetensors" in modes


def test_a_tokenizer_with_code_of_its_own_is_refused(tiny, tmp_path):
    save_model(tiny("gpt2"), None, tmp_path / "m")
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "m" / "mine.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    with pytest.raises(ValueError, match="its tokenizer is code of its own") as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value) and not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("values", "saved"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True, "eos_token_id": 2}),
        ({"temperature": 0.9, "length_penalty": 2.0}, {"eos_token_id": 2}),
        ({"pad_token_id": -1}, {"eos_token_id": 2}),
        ({"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5, "eos_token_id": 2}),
    ],
)
def test_generation_defaults_that_transformers_refuses_are_repaired_and_said(tiny, values, saved, tmp_path, caplog):
    """As published with vicuna and copies of Llama 2: temperature without do_sample, which cannot be saved."""
    model = tiny("llama")
    model.generation_config = GenerationConfig(eos_token_id=2)
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    save_model(model, None, tmp_path / "m")
    written = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    kept = {
        name: value for name, value in written.items() if name not in ("transformers_version", "_from_model_config")
    }
    assert kept == saved
    assert len(caplog.messages) == (0 if "do_sample" in values else 1)
    save_model(model, None, tmp_path / "m")  # what was said once is settled
    assert len(caplog.messages) == (0 if "do_sample" in values else 1)


def test_first_rows_are_a_trial_of_the_whole(tiny, tmp_path):
    """The same files and names, tied weights left out as in the whole, at a fraction of the size."""
    model = tiny("gpt_neo")
    save_model(model, None, tmp_path / "whole")
    save_model(model, None, tmp_path / "trial", first_rows=True)
    whole, trial = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "trial"))
    assert trial.keys() == whole.keys() and all(len(weight) == 1 for weight in trial.values())
    assert sorted(p.name for p in (tmp_path / "trial").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_what_lies_beside_a_model_stays(tiny, tmp_path):
    """Your notes and conversions in a model's directory outlive the next save; files of the old model do not."""
    place = save_model(tiny("gpt2"), slms.load_base("stories-1m").tokenizer, tmp_path / "m")
    (place / "model-q8.gguf").write_text("mine")
    (place / "model-best.safetensors").write_text("mine too")
    (place / "model-00001-of-00002.safetensors").write_text("a shard of the old model")
    (place / "deep").mkdir()
    (place / "deep" / "config.json").write_text("{}")
    (place / "link").symlink_to("nowhere")
    save_model(tiny("gpt2", seed=1), None, place)
    assert (place / "model-q8.gguf").read_text() == "mine" and (place / "deep" / "config.json").read_text() == "{}"
    assert (place / "model-best.safetensors").exists() and os.readlink(place / "link") == "nowhere"
    assert not (place / "model-00001-of-00002.safetensors").exists()
    assert load_model(place).tokenizer is None and list(tmp_path.iterdir()) == [place]


def test_a_weight_that_is_not_finite_is_refused_by_name(tiny, tmp_path):
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    save_model(model, None, tmp_path / "m")
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        load_model(tmp_path / "m")
