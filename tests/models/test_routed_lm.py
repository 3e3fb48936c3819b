"""Routed models as Hugging Face classes: generation, pickling, registration, construction from a configuration."""

import copy
import pickle
import subprocess
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from slms.models import routed_config, routed_lm
from slms.models.anatomy import list_layers
from slms.models.convert import route
from slms.models.families import FAMILIES
from slms.models.routed import record_routes, routed_modules, set_k
from slms.routing import RoutingConfig

CONFIG = RoutingConfig(n_pathways=5, k=2, router="linear")


def test_every_family_has_routed_classes_that_their_names_find():
    for family, row in FAMILIES.items():
        config, model = getattr(routed_config, f"Routed{row.config}"), getattr(routed_lm, f"Routed{row.model}")
        assert config is routed_config.CONFIGS[family] and model is routed_lm.routed_class(family)
        assert model.config_class is config and config.model_type == f"routed_{family}"
        assert issubclass(model, getattr(transformers, row.model)) and pickle.loads(pickle.dumps(model)) is model


def test_a_process_that_has_made_no_routed_class_unpickles_one(tiny, tokens):
    routed = route(tiny("gpt2"), CONFIG, tokens(4, 16))
    program = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__name__)"
    run = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(routed), capture_output=True, check=True)
    assert run.stdout.decode().strip() == "RoutedGPT2LMHeadModel"


def test_greedy_generation_with_cache_equals_without(tiny, tokens, family):
    routed, ids = route(tiny(family), CONFIG, tokens(4, 16)), tokens(2, 5)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    cached = routed.generate(ids, use_cache=True, **options)
    assert cached.shape == (2, 17)
    assert torch.equal(cached, routed.generate(ids, use_cache=False, **options))


def test_list_layers_reads_routed_models_too(tiny, tokens, family):
    model = tiny(family)
    assert list_layers(route(model, CONFIG, tokens(4, 16))) == list_layers(model)


def test_pickle_and_deepcopy(tiny, tokens, family):
    routed, ids = route(tiny(family), CONFIG, tokens(4, 16)), tokens(2, 5)
    for again in (pickle.loads(pickle.dumps(routed)), copy.deepcopy(routed)):
        assert type(again) is type(routed)
        assert torch.equal(again(ids).logits, routed(ids).logits)


def test_a_model_built_from_its_configuration_has_finite_random_weights(tiny, tokens, family):
    routed = route(tiny(family), CONFIG, tokens(4, 16))
    again = type(routed)(routed.config).eval()
    assert list(again.state_dict()) == list(routed.state_dict())
    assert all(value.isfinite().all() for value in again.state_dict().values() if value.is_floating_point())
    assert again(tokens(1, 5)).logits.isfinite().all()


def test_print_shows_what_is_routed_at_a_glance(tiny, tokens, family):
    routed = route(tiny(family), CONFIG, tokens(4, 16))
    lines = repr(routed).splitlines()
    assert lines[0].startswith(f"{type(routed).__name__}, ") and len(lines) == 3
    assert lines[1] == "  L0.mlp, L2.mlp: 37 neurons in 5 pathways, the best 2 chosen by its linear router, density 0.4"
    assert lines[2] == "  60% of all MLP neurons execute for a token"


def test_auto_config_knows_the_routed_types(tmp_path):
    config = routed_config.RoutedGPTNeoConfig(
        num_layers=2, attention_types=[[["global"], 2]], routing=CONFIG.to_dict(), hidden_size=32
    )
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is routed_config.RoutedGPTNeoConfig and RoutingConfig.from_dict(read.routing) == CONFIG
    assert type(AutoModelForCausalLM.from_config(read)) is routed_lm.RoutedGPTNeoForCausalLM


def test_routes_are_recorded_by_layer_and_padding_does_not_move_real_tokens(tiny, tokens):
    routed, ids = route(tiny("gpt_neo"), CONFIG, tokens(4, 16)), tokens(2, 6)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    with record_routes(routed) as routes:
        padded = routed(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    assert sorted(routes) == ["L0.mlp", "L2.mlp"] and routes["L0.mlp"].chosen.shape == (12, 5)
    torch.testing.assert_close(padded[0, 2:], routed(ids[:1, 2:]).logits[0], atol=1e-5, rtol=1e-5)


def test_k_changes_what_runs_and_comes_back_from_the_configuration(tiny, tokens):
    model, ids = tiny("gpt2"), tokens(2, 6)
    routed = route(model, CONFIG, tokens(4, 16))
    at_two = routed(ids).logits
    set_k(routed, 5)
    torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-5)
    set_k(routed, 2)
    assert torch.equal(routed(ids).logits, at_two)
    assert all(layer.config == CONFIG for layer in routed_modules(routed).values())
