import pytest
import transformers as hf

import slms
from slms.models.stock import ARCHITECTURES, check_base, check_model
from slms.routing import RoutingConfig

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
STOCK = RoutingConfig(stock=True, n_pathways=4, k=2, every_n_layers=1)


def routing(**changes) -> RoutingConfig:
    return RoutingConfig.from_dict(STOCK.to_dict() | {"stock": False} | changes)


def test_every_architecture_and_family_exists_in_transformers():
    for name, row in ARCHITECTURES.items():
        assert getattr(hf, row.config).model_type == name and hasattr(hf, row.model)


@pytest.mark.parametrize(
    ("base", "changes", "named"),
    [
        (hf.LlamaConfig(**SHAPE), {"gate": "unit"}, ["--model.routing.gate=softmax"]),
        (hf.LlamaConfig(**SHAPE), {"n_pathways": 5}, ["n_pathways` is 5 and d_ff 48", "=2, 3, 4, 6, 8, 12"]),
        (hf.LlamaConfig(**SHAPE, attention_bias=True), {}, ["`attention_bias`"]),
        (hf.LlamaConfig(**SHAPE, mlp_bias=True), {}, ["`mlp_bias`"]),
        (hf.LlamaConfig(**SHAPE | {"hidden_act": "gelu"}), {}, ["activation is gelu"]),
        (hf.Qwen3Config(**SHAPE), {"n_shared": 1}, ["--model.routing.n_shared=0"]),
        (hf.GPTNeoConfig(), {}, ["a gpt_neo has no stock mixture of experts, only llama, mistral, qwen2, qwen3"]),
        (hf.MistralConfig(**SHAPE, sliding_window=8), {"n_shared": 1}, ["--model.routing.n_shared=0"]),
        (  # a window fits Mixtral alone, so the others have to give way
            hf.MistralConfig(**SHAPE, sliding_window=8),
            {"n_shared": 1, "layers": [1]},
            ["--model.routing.n_shared=0", "layers 0, 2 are dense"],
        ),
        (hf.LlamaConfig(**SHAPE), {"n_pathways": 5, "k": 5}, ["=6, 8, 12, 16, 24, 48"]),
        (hf.LlamaConfig(**SHAPE), {"target": "both", "k_heads": 1}, ["routing.target=mlp", "routing.k_heads=null"]),
    ],
)
def test_what_no_architecture_can_express_is_named_before_training(base, changes, named):
    with pytest.raises(ValueError) as refused:
        check_base(base, routing(**changes))
    assert all(words in str(refused.value) for words in named) and "\n" not in str(refused.value)


def test_a_base_fits_if_one_architecture_does_and_balancing_by_bias_never_does():
    llama = hf.LlamaConfig(**SHAPE)
    for fine in ({}, {"n_shared": 1}, {"every_n_layers": 2}):
        check_base(llama, routing(**fine))
    check_base(hf.Qwen2Config(**SHAPE), STOCK)
    check_base(hf.MistralConfig(**SHAPE, sliding_window=8), STOCK)
    with pytest.raises(ValueError, match=r"--model.balance.bias_rate=0"):
        check_base(llama, STOCK, bias_rate=1e-3)
    every = RoutingConfig(stock=True, n_pathways=5, k=2, gate="unit", router="mlp", rule="top_p", target="both")
    for refuse in (lambda: check_base(llama, every), lambda: slms.route(hf.LlamaForCausalLM(llama), every)):
        with pytest.raises(ValueError, match=r"`routing\.stock` is true, but ") as refused:
            refuse()
        lifts = ["target=mlp", "rule=top_k", "router=linear", "gate=softmax", "n_pathways=2, 3"]
        assert all(f"(--model.routing.{lift}" in str(refused.value) for lift in lifts), refused.value


def test_one_line_names_the_routing_the_base_and_the_balance_together():
    mistral = hf.MistralConfig(**SHAPE, sliding_window=8)
    asked = RoutingConfig(stock=True, n_pathways=5, k=2, gate="unit", router="mlp", layers=[0, 2])
    with pytest.raises(ValueError) as refused:
        check_base(mistral, asked, bias_rate=0.1)
    named = ["router=linear", "gate=softmax", "d_ff 48", "layer 1 is dense", "--model.balance.bias_rate=0"]
    assert all(words in str(refused.value) for words in named) and "\n" not in str(refused.value), refused.value


def test_at_export_all_that_stands_in_the_way_is_named_with_the_flag_that_lifts_it():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE))
    with pytest.raises(ValueError, match="not routed"):
        check_model(model, "mixtral")
    routed = slms.route(model, routing(layers=[1], n_shared=1, gate="sigmoid", mean_compensation=False))
    routed.model.layers[1].mlp.router.selection_bias.fill_(0.5)
    with pytest.raises(ValueError) as refused:
        check_model(routed, "mixtral")
    flags = ["gate=softmax", "layers=null", "every_n_layers=1", "n_shared=0", "balance.bias_rate=0", "qwen2_moe"]
    assert all(flag in str(refused.value) for flag in flags), refused.value
    with pytest.raises(ValueError, match=r"it is a llama \(--format mixtral or qwen2_moe\) and .*gate=softmax"):
        check_model(routed, "qwen3_moe")
    both = slms.route(model, routing(target="both", k_heads=1, gate="softmax"))
    with pytest.raises(ValueError, match=r"`routing\.target` is both \(--model\.routing\.target=mlp\)"):
        check_model(both, "mixtral")
