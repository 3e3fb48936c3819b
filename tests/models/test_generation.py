"""What the tools that users already have do with routed models: generate, pipeline, compile, export, LoRA.

Each is compared with the same thing done without a cache, one text at a time, eagerly, or with the plain weights.
"""

import importlib.util
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import slms
from slms.models.convert import route
from slms.models.io import load_model, read_tokenizer, save_model
from slms.models.routed import routed_modules
from slms.models.source import EMBEDDED
from slms.routing import RoutingConfig

CONFIG = RoutingConfig(n_pathways=5, k=2, router="linear")
OPTIONS = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Texts of different lengths [t] as one batch [b, t], padding on the left."""
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((longest - len(row),), 2), row]) for row in rows])
    mask = torch.stack([torch.cat([torch.zeros(longest - len(row)), torch.ones(len(row))]) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("beams", [1, 3])
def test_a_padded_batch_generates_what_each_text_generates_alone(tiny, tokens, family, beams):
    routed = route(tiny(family), CONFIG, tokens(4, 16))
    rows = [tokens(1, t, seed=t)[0] for t in (3, 9, 6)]
    together = routed.generate(**left_padded(rows), num_beams=beams, **OPTIONS)
    for row, made in zip(rows, together, strict=True):
        alone = routed.generate(row[None], num_beams=beams, use_cache=False, **OPTIONS)[0]
        assert torch.equal(made[-len(alone) :], alone)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A routed stories-1m, saved, then moved to another place."""
    model, tokenizer = slms.load_base("stories-1m")
    ids = tokenizer("Once upon a time, there was a girl named Lily. She liked to play.", return_tensors="pt").input_ids
    routed = slms.route(model, RoutingConfig(n_pathways=8, k=3, every_n_layers=4), calibration=ids)
    first = tmp_path_factory.mktemp("first")
    save_model(routed, tokenizer, first / "model")
    place = tmp_path_factory.mktemp("second") / "elsewhere"
    shutil.move(first / "model", place)
    for file in place.glob("*"):
        assert str(first).encode() not in file.read_bytes(), file
    return place


def test_a_copied_directory_serves_pipelines(saved):
    prompts = ["Once upon a time", "The dog ran to"]
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    writer = pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(saved), tokenizer=tokenizer)
    told = writer(prompts, max_new_tokens=10, do_sample=False, batch_size=2)
    model, _ = load_model(saved)
    for prompt, (text,) in zip(prompts, told, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        alone = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0, use_cache=False)
        assert text["generated_text"] == tokenizer.decode(alone[0], skip_special_tokens=True)
    by_name = pipeline("text-generation", model=str(saved))
    assert type(by_name.model) is type(model)


def test_files_hold_each_parameter_once(tiny, tokens, family, tmp_path):
    routed = route(tiny(family), CONFIG, tokens(4, 16))
    save_model(routed, None, tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  no dict
    unique = {tensor.data_ptr(): tensor for tensor in routed.state_dict().values()}.values()
    assert sum(torch.Size(shape).numel() for shape in stored.values()) == sum(t.numel() for t in unique)
    tensors = sum(t.numel() * t.element_size() for t in unique)
    parameters = {id(p): p for p in routed.parameters()}.values()
    assert sum(p.numel() * p.element_size() for p in parameters) <= tensors
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert tensors < size < tensors + 200 * len(stored) + 200  # the header


def test_a_tied_head_is_stored_once(saved):
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model, _ = load_model(saved)
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.slow
def test_a_compiled_forward_gives_the_same_logits(tiny, tokens):
    routed, ids = route(tiny("llama"), CONFIG, tokens(4, 16)), tokens(2, 9)
    compiled = torch.compile(routed, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(ids, use_cache=False).logits, routed(ids, use_cache=False).logits, atol=1e-5, rtol=1e-5
        )


@pytest.mark.slow
def test_an_exported_forward_gives_the_same_logits(tiny, tokens):
    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(ids, use_cache=False).logits

    routed = route(tiny("llama"), CONFIG, tokens(4, 16))
    with torch.no_grad():
        program = torch.export.export(Logits(routed), (tokens(2, 9),), strict=False)
        for seed in range(3):  # other tokens choose other pathways
            ids = tokens(2, 9, seed=seed)
            torch.testing.assert_close(program.module()(ids), routed(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install peft")
@pytest.mark.slow
def test_lora_adapts_routers_and_neuron_matrices_and_merges(tiny, tokens, family, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    config = RoutingConfig(n_pathways=5, k=2, router="mlp", router_hidden=8)
    routed, ids = route(tiny(family), config, tokens(4, 16)), tokens(2, 9)
    before, routed_keys = routed(ids).logits.detach(), list(routed.state_dict())
    layer = next(iter(routed_modules(routed).values()))
    linears = sorted(
        {name.rpartition(".")[2] for name, m in layer.router.named_modules() if isinstance(m, torch.nn.Linear)}
    )
    raw = ["mlp.W_in", "mlp.W_out"]
    adapted = get_peft_model(
        routed,
        LoraConfig(
            r=2, target_modules=[f"router.{name}" for name in linears], target_parameters=raw, init_lora_weights=True
        ),
    )
    assert torch.allclose(adapted(ids).logits, before, atol=1e-6)  # B starts at zero
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert any("router" in name for name in trained) and any("router" not in name for name in trained)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = adapted.eval()(ids).logits.detach()
    assert not torch.allclose(after, before, atol=1e-4)
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(route(tiny(family), config, tokens(4, 16)), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(ids).logits, after, atol=1e-5, rtol=1e-5)
    again.merge_and_unload()
    merged = again.merge_and_unload()  # peft unloads what lies inside an adapted module on its second pass
    assert set(merged.state_dict()) == set(routed_keys)
    torch.testing.assert_close(merged(ids).logits, after, atol=1e-4, rtol=1e-4)
    save_model(merged, read_tokenizer(EMBEDDED["stories-1m"]), tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged").model(ids).logits, after, atol=1e-4, rtol=1e-4)
