"""The head apart from the body: its logits are the model's own, whatever the architecture; and when it is not taken."""

import importlib.util
import logging

import pytest
import torch
import transformers as hf

from slms.models import head as module
from slms.models.convert import route
from slms.models.head import Head, separates, through_head
from slms.models.routed import record_routes
from slms.models.token_loss import next_tokens, token_loss
from slms.routing import RoutingConfig

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
OTHERS = {
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**SMALL, logits_scaling=7.0, num_key_value_heads=4)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SMALL, logit_scale=0.25, pad_token_id=0, eos_token_id=1)),
    "phi": lambda: hf.PhiForCausalLM(
        hf.PhiConfig(**SMALL | {"num_attention_heads": 2}, eos_token_id=1)
    ),  # a bias in the head
}


class Shifted(hf.LlamaForCausalLM):
    """Does to its logits what no configuration says."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.01
        return out


def visible(model):
    """Weights of a size at which a scale, a cap or a bias shows."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def capped(model, cap=2.0):
    if hasattr(model.config, "final_logit_softcapping"):
        model.config.final_logit_softcapping = cap
    return model


def of_head(model, ids):
    """Logits by the head apart; fails where it was not taken."""

    def use(hidden, head):
        assert head.weight is not None
        with torch.no_grad():
            return head.logits(hidden.flatten(0, 1), torch.empty(ids.numel(), len(head.weight))).view(*ids.shape, -1)

    return through_head(model, ids, use)


def same(model, ids):
    wanted = model(ids).logits
    for _ in range(2):  # tried, and known
        torch.testing.assert_close(of_head(model, ids), wanted, rtol=1e-6, atol=1e-6)


def test_every_family(tiny, tokens, family):
    same(capped(tiny(family)), tokens(3, 7))


def test_routed_models_with_their_routes(tiny, tokens):
    ids = tokens(3, 7)
    routed = route(tiny("llama"), RoutingConfig(n_pathways=4, k=2, every_n_layers=1), tokens(4, 16))
    with record_routes(routed) as routes:
        same(routed, ids)
    assert len(routes) == 3 and len(routes["L0.mlp"].chosen) == ids.numel()


@pytest.mark.parametrize("name", OTHERS)
def test_scales_and_biases(name, tokens):
    same(visible(OTHERS[name]()), tokens(3, 7))


def test_a_padded_vocabulary_counts_as_the_model_counts_it(tiny, tokens):
    model = tiny("gpt_neox")
    model.resize_token_embeddings(64)
    same(model, tokens(2, 5))


def test_no_logits_are_computed_once_a_model_is_known(tiny, tokens):
    model, widths = tiny("llama"), []
    assert separates(model)
    model.register_forward_hook(lambda _, args, out: widths.append(out.logits.shape[1]))
    of_head(model, tokens(3, 7))
    assert widths == [0]


def test_gradients_reach_every_parameter_as_through_the_logits(tiny, tokens, family):
    model, ids = capped(tiny(family)), tokens(3, 7)
    targets = next_tokens(ids)
    whole = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
    wanted = torch.autograd.grad(whole, list(model.parameters()))
    for _ in range(2):
        loss = through_head(model, ids, lambda hidden, head: token_loss(hidden, head, targets)).total
        for found, of in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
            torch.testing.assert_close(found, of, rtol=1e-5, atol=1e-6)


def with_lora_on_the_head():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    return get_peft_model(hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)), config)


def hooked():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    model.lm_head.register_forward_hook(lambda _, args, y: 2 * y)
    return model


needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install peft"
)


@pytest.mark.parametrize(
    "made", [lambda: Shifted(hf.LlamaConfig(**SMALL)), hooked, pytest.param(with_lora_on_the_head, marks=needs_peft)]
)
def test_a_head_that_does_more_is_left_to_the_model_and_said(made, tokens, caplog):
    model, ids = visible(made()), tokens(3, 7)
    wanted, parameters = model(ids).logits, [p for p in model.parameters() if p.requires_grad]
    targets = next_tokens(ids)
    whole = torch.nn.functional.cross_entropy(wanted.flatten(0, 1), targets.flatten())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert through_head(model, ids, lambda hidden, head: (hidden, head))[1] == Head()
            loss = through_head(model, ids, lambda hidden, head: token_loss(hidden, head, targets)).total
    torch.testing.assert_close(loss, whole)
    for mine, of in zip(*(torch.autograd.grad(total, parameters) for total in (loss, whole)), strict=True):
        torch.testing.assert_close(mine, of)
    assert not separates(model)
    assert [record.message for record in caplog.records] == [
        f"{type(model).__name__}: its head is not a plain Linear with a known scale; losses are taken from whole logits"
    ]


@needs_peft
def test_adapters_in_the_body_leave_the_head_apart(tokens):
    from peft import LoraConfig, get_peft_model

    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    same(
        visible(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))),
        tokens(3, 7),
    )


def test_another_head_is_tried_anew(tiny, tokens):
    model, ids = tiny("gemma2"), tokens(3, 7)
    same(model, ids)
    same(capped(model, 1.0), ids)
    model.lm_head.register_forward_hook(lambda _, args, y: 2 * y)
    assert not separates(model)
    assert module._tried[model][0] is None
