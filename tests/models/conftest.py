"""A tiny model of every architecture; d_ff is 37, which no number of pathways but 37 divides."""

import pytest
import torch
import transformers as hf

from slms.models.decode_step import Step

VOCAB, D_FF = 61, 37
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": D_FF,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAMILIES = {
    "gpt_neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=VOCAB,
            hidden_size=24,
            num_layers=3,
            num_heads=4,
            intermediate_size=D_FF,
            window_size=5,
            attention_types=[[["global", "local", "local"], 1]],
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
        )
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=24,
            n_layer=3,
            n_head=4,
            n_inner=D_FF,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=1,
        )
    ),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=D_FF,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
        )
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA, mlp_bias=True)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_LLAMA, sliding_window=7)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**{k: v for k, v in _LLAMA.items() if k != "head_dim"})),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_LLAMA)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**_LLAMA)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_LLAMA, sliding_window=7)),
    "gemma3_text": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_LLAMA, sliding_window=7)),
}


@pytest.fixture
def tiny():
    """Build a tiny model of a family, in evaluation mode, all of its weights and biases random and of visible size."""

    def build(family: str, seed: int = 0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = FAMILIES[family]().eval()
            for name, parameter in model.named_parameters():
                if "norm" not in name and "ln_" not in name:
                    torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.1)
        return model

    return build


@pytest.fixture
def tokens():
    """Random token ids [b, t] of the tiny vocabulary."""

    def draw(b: int, t: int, seed: int = 0):
        return torch.randint(3, VOCAB, (b, t), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(params=list(FAMILIES))
def family(request) -> str:
    """Each architecture in turn."""
    return request.param


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ran(monkeypatch):
    """Whether the compiled step ran, of each forward that asked it."""
    seen, run = [], Step._run

    def watched(step, kwargs):
        seen.append((out := run(step, kwargs)) is not None)
        return out

    monkeypatch.setattr(Step, "_run", watched)
    return seen
