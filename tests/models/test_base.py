"""Bases by name: the embedded architecture, Pythia's exact shapes, random weights, other shapes."""

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import slms
from slms.models.base import BaseConfig, build_meta, init_base, load_base, random_twin
from slms.models.convert import route
from slms.models.flops import flops_per_token
from slms.models.io import save_model
from slms.models.routed import routed_modules, set_k, set_ramp
from slms.models.routed_config import CONFIGS
from slms.models.routed_lm import routed_class
from slms.models.transformers_internals import SDPASelfAttention
from slms.routing import RoutingConfig

PYTHIA = {  # hidden, layers, heads, d_ff, parameters (EleutherAI/pythia's table); share of FLOPs saved, counted by hand
    "70m": (512, 6, 8, 2048, 70_426_624, 0.10),
    "160m": (768, 12, 12, 3072, 162_322_944, 0.17),
    "410m": (1024, 24, 16, 4096, 405_334_016, 0.21),
}


@pytest.fixture
def word_tokenizer():
    words = {word: i for i, word in enumerate(["<end>", "once", "upon", "a", "time"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_stories_1m_is_the_tinystories_1m_shape():
    model = init_base("stories-1m", seed=1)
    c = model.config
    assert type(model) is hf.GPTNeoForCausalLM
    assert (c.num_layers, c.hidden_size, c.num_heads, c.window_size, c.max_position_embeddings) == (
        8,
        64,
        16,
        256,
        2048,
    )
    assert c.attention_layers == ["global", "local"] * 4
    assert (c.vocab_size, c.activation_function, c.bos_token_id, c.eos_token_id) == (2048, "gelu_new", 0, 0)
    assert {layer[2:5] for layer in slms.list_layers(model)} == {(64, 256, "gelu_new")}
    assert type(model.transformer.h[0].attn.attention) is SDPASelfAttention
    assert model.num_parameters() == 2048 * 64 * 2 + 8 * (12 * 64**2 + 64 * (1 + 4 + 1) + 4 * 64) + 2 * 64


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (init_base("stories-1m", seed=s).state_dict()["transformer.wte.weight"] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_init_through_load_base(tiny, tmp_path, word_tokenizer):
    save_model(tiny("gpt2"), word_tokenizer, tmp_path / "m")
    base = BaseConfig(name=str(tmp_path / "m"), init="random", seed=5)
    model, tokenizer = load_base(base)
    assert torch.equal(model.lm_head.weight, init_base(tmp_path / "m", seed=5).lm_head.weight)
    assert not torch.equal(model.lm_head.weight, tiny("gpt2").lm_head.weight)
    assert tokenizer("once upon").input_ids == [1, 2]


def test_a_base_is_fp32_whatever_is_stored_unless_asked(tiny, tmp_path, word_tokenizer):
    save_model(tiny("gpt_neox").half(), word_tokenizer, tmp_path / "m")
    assert load_base(tmp_path / "m").model.dtype == torch.float32
    assert load_base(tmp_path / "m", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_the_tokenizer_is_the_bases_another_or_given(tiny, tmp_path, word_tokenizer, shared_data):
    save_model(tiny("gpt2"), None, tmp_path / "bare")
    with pytest.raises(
        ValueError,
        match=r"bare has no tokenizer; name one with --model\.base\.tokenizer NAME \(in YAML `model: {base: {",
    ):
        load_base(tmp_path / "bare")
    assert load_base(tmp_path / "bare", tokenizer=word_tokenizer).tokenizer is word_tokenizer
    tokenizer = load_base(tmp_path / "bare", tokenizer=str(shared_data / "tokenizers" / "gpt2")).tokenizer
    assert tokenizer("Once upon a time").input_ids == [7454, 2402, 257, 640]
    with pytest.raises(OSError, match="there is no such directory"):
        load_base(tmp_path / "bare", tokenizer=str(tmp_path / "absent"))


def test_a_bare_tokenizer_json_gets_the_special_tokens_of_the_configuration(tiny, tmp_path, word_tokenizer):
    model = tiny("gpt2")
    save_model(model, None, tmp_path / "m")
    word_tokenizer.backend_tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    tokenizer = load_base(tmp_path / "m").tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<end>", "once")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (model.config.bos_token_id, model.config.eos_token_id)


def test_another_shape(tiny, family, tmp_path):
    tiny(family).config.save_pretrained(tmp_path)
    base = BaseConfig(name=str(tmp_path), init="random", d_model=48, n_layers=5, n_heads=6, vocab=70)
    model = init_base(base)
    layers = slms.list_layers(model)
    assert (
        len(layers) == 5
        and {layer.d_model for layer in layers} == {48}
        and {layer.d_ff for layer in layers} <= {37, 74}
    )
    assert model.config.num_attention_heads == 6 and model.get_input_embeddings().num_embeddings == 70
    assert model(torch.arange(9)[None]).logits.shape == (1, 9, 70)


def test_another_depth_of_stories_1m_keeps_alternating():
    model = init_base(BaseConfig(name="stories-1m", init="random", n_layers=3, d_model=32, n_heads=4))
    assert model.config.attention_layers == ["global", "local", "global"]
    assert slms.list_layers(model)[0][2:4] == (32, 128)


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"`base.d_model` is 40; it must be a multiple of n_heads \(16\)"):
        init_base(BaseConfig(name="stories-1m", init="random", d_model=40))


def pythia(size):
    d, n_layers, heads, d_ff, *_ = PYTHIA[size]
    return hf.GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=d,
        num_hidden_layers=n_layers,
        num_attention_heads=heads,
        intermediate_size=d_ff,
        rotary_pct=0.25,
        max_position_embeddings=2048,
        use_parallel_residual=True,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPTNeoXForCausalLM"],
    )


@pytest.mark.parametrize("size", PYTHIA)
def test_pythia_shapes_layers_and_savings(size, tmp_path):
    """Without memory for weights; savings at 4 of 16 on every second layer."""
    d, n_layers, _, d_ff, parameters, saving = PYTHIA[size]
    pythia(size).save_pretrained(tmp_path)
    model = build_meta(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert slms.list_layers(str(tmp_path))[-1] == (
        n_layers - 1,
        f"gpt_neox.layers.{n_layers - 1}.mlp",
        d,
        d_ff,
        "gelu",
        False,
    )
    config = CONFIGS["gpt_neox"](**pythia(size).to_dict(), routing=RoutingConfig().to_dict())
    with torch.device("meta"):
        routed = routed_class("gpt_neox")(config)
    assert list(routed_modules(routed)) == [f"L{i}.mlp" for i in range(0, n_layers, 2)]
    assert flops_per_token(routed, 1).total_saving == pytest.approx(saving, abs=0.005)


@pytest.mark.slow
def test_pythia_70m_as_it_is_trained_routes_generates_and_saves(shared_data, tmp_path):
    """The exact architecture, random weights, the real tokenizer; calibrated on real text."""
    pythia("70m").save_pretrained(tmp_path)
    neox = shared_data / "tokenizers" / "neox"
    model, tokenizer = load_base(BaseConfig(name=str(tmp_path), init="random", tokenizer=str(neox)))
    assert tokenizer("Once upon a time").input_ids == AutoTokenizer.from_pretrained(neox)("Once upon a time").input_ids
    text = (shared_data / "text" / "tinystories_dev.txt").read_text()[:4000]
    ids = torch.tensor(tokenizer(text).input_ids[:512]).view(8, 64)
    routed = route(model, RoutingConfig(router="linear"), ids)
    prompt = torch.tensor([tokenizer("Once upon a time").input_ids])
    assert routed.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, prompt.shape[1] + 4)
    set_k(routed, 16)
    with torch.no_grad():
        torch.testing.assert_close(routed(ids[:1]).logits, model(ids[:1]).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", ["160m", "410m"])
def test_larger_pythias_of_two_layers_keep_the_function(size):
    config = pythia(size)
    config.num_hidden_layers, config.vocab_size = 2, 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.GPTNeoXForCausalLM(config).eval()
    ids = torch.arange(32).view(2, 16)
    routed = route(model, RoutingConfig(partition="random", router="linear"), ids)
    set_k(routed, 16)
    with torch.no_grad():
        torch.testing.assert_close(routed(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_stand_in_brings_its_own_tokenizer_but_a_named_base_takes_the_one_named(
    monkeypatch, word_tokenizer, tmp_path
):
    word_tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("slms.models.source.hub_trouble", lambda *_, **__: "the hub cannot be reached")
    pair = {"hub": "roneneldan/TinyStories-1M", "embedded": "stories-1m", "init": "random"}
    own = load_base(BaseConfig(**pair, tokenizer=str(tmp_path))).tokenizer
    named = load_base(BaseConfig(name="stories-1m", init="random", tokenizer=str(tmp_path))).tokenizer
    assert (len(own), len(named)) == (2048, 5)


def test_a_random_twin_is_the_model_in_all_but_its_weights():
    base = init_base("stories-1m", seed=7)
    model = route(base, RoutingConfig(layers=[1, 3], n_pathways=8, k=4, gate="ramp"))
    set_k(model, 6)  # as annealing leaves it
    set_ramp(model, 0.75)
    state = torch.get_rng_state()
    twin, again = random_twin(model), random_twin(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    assert any(isinstance(module, SDPASelfAttention) for module in twin.modules())
    for place, module in routed_modules(twin).items():
        its = routed_modules(model)[place]
        assert (module.k, module.config, module.router.ramp) == (6, its.config, its.router.ramp)
    mine, theirs = model.state_dict(), twin.state_dict()
    assert all(mine[name].shape == theirs[name].shape for name in mine)
    assert not torch.equal(mine["transformer.h.1.mlp.W_in"], theirs["transformer.h.1.mlp.W_in"])
    assert all(torch.equal(theirs[name], value) for name, value in again.state_dict().items())
    half = random_twin(base.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and not half.training
