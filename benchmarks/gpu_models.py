"""Times a routed SmolLM2-135M beside the dense one, and trains both for some steps, for `benchmarks.gpu`.

Without the real weights the model has its shape and random ones, which a row says; they change no time. Decoding is one
more token with a static cache: eager, as one CUDA graph, or compiled; prompts run eagerly.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

from benchmarks.gpu_setting import Row, Setting
from slms.kernels.timing import graphed, time_together
from slms.models.base import load_base
from slms.models.convert import route
from slms.models.transformers_internals import CACHE
from slms.routing import RoutingConfig

PROMPT = 128  # tokens before a decoded one
STEPS = 40  # of training


def smollm2(setting: Setting) -> tuple[PreTrainedModel, str]:
    """SmolLM2-135M, or a model of its shape, and which of both it is."""
    if not setting.dry:
        try:
            return load_base("smollm2-135m").model.to(setting.device), "the real weights"  # type: ignore[arg-type]  # of a decorated method
        except (ValueError, OSError, ImportError) as error:
            why = str(error).splitlines()[0]
            return random_llama(49152, 576, 30, 9, 3, 1536).to(setting.device), f"random weights ({why})"  # type: ignore[arg-type]  # of a decorated method
    # In float64 no loop is compiled on the CPU.
    return random_llama(64, 16, 2, 2, 1, 64).double(), "a tiny model with random weights"


def random_llama(vocab: int, d: int, layers: int, heads: int, kv_heads: int, d_ff: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=d,
        intermediate_size=d_ff,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def routed(dense: PreTrainedModel, ids: Tensor, dry: bool) -> dict[str, PreTrainedModel]:
    """The dense model routed in every layer, by name: single neurons by their gates, and exportable pathways.

    A dry run has the first of them alone.
    """
    d_ff = dense.config.intermediate_size

    def by(**options: object) -> PreTrainedModel:
        config = RoutingConfig(every_n_layers=1, partition="contiguous", **options)  # type: ignore[arg-type]
        return route(dense, config, ids)

    half = {"gate ρ .5": by(router="gate", n_pathways=d_ff, k=d_ff // 2)}
    if dry:
        return half
    return half | {
        "gate ρ .25": by(router="gate", n_pathways=d_ff, k=d_ff // 4),
        "4 of 16 pathways": by(n_pathways=16, k=4, router_init="random", stock=True),
    }


def static_step(
    model: PreTrainedModel, prompt: Tensor, run: Callable[..., object] | None = None
) -> Callable[[], object]:
    """One more token after the prompt [b, t], which you can repeat: the cache's place is set back on the device.

    run: a compiled form of the model.
    """
    cache = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + 8)
    model(prompt, use_cache=True, logits_to_keep=1, **{CACHE: cache})
    lengths: list[Tensor] = [layer.cumulative_length for layer in cache.layers]  # type: ignore[union-attr, misc]
    token, call = prompt[:, -1:].clone(), run or model

    def step() -> object:
        out = call(token, use_cache=True, **{CACHE: cache})
        torch._foreach_sub_(lengths, 1)
        return out

    return step


def _times(
    what: str, how: str, runs: Mapping[str, Callable[[], object]], setting: Setting, cells: Row
) -> Iterator[Row]:
    times = time_together(runs, setting.device, setting.seconds * 4)
    for name, spread in times.items():
        row: Row = {"what": what, **cells, "how": how, "model": name, "ms": round(spread.p50 / 1e3, 3)}
        yield row | ({"dense / it": round(times["dense"].p50 / spread.p50, 2)} if "dense" in times else {})


def model_rows(setting: Setting) -> Iterator[Row]:
    """Time decoding and prompts of whole models, in turns where they are not compiled."""
    dense, weights = smollm2(setting)
    vocab = dense.config.vocab_size
    ids = torch.randint(3, vocab, (4, 64), device=setting.device)
    yield {"what": "weights", "model": weights}
    models = {"dense": dense, **routed(dense, ids, setting.dry)}
    if not setting.dry:
        models = {name: model.to(torch.bfloat16) for name, model in models.items()}  # type: ignore[arg-type]  # of a decorated method
    for model in models.values():
        model.eval()

    def prompt(batch: int, tokens: int) -> Tensor:
        return torch.randint(3, vocab, (batch, tokens), device=setting.device)

    before = prompt(1, 8 if setting.dry else PROMPT)

    def steps(batch: int, wrap: Callable[[Callable[[], object]], Callable[[], object]], how: str) -> Iterator[Row]:
        runs = {name: wrap(static_step(model, before.repeat(batch, 1))) for name, model in models.items()}
        yield from _times("decode", how, runs, setting, {"batch": batch, "prompt": before.shape[1]})

    def compiled(name: str) -> Iterator[Row]:
        torch.compiler.reset()
        # One form for dense and routed: kernels chosen by PyTorch, launched as CUDA graphs.
        run = static_step(models[name], before, torch.compile(models[name], mode="reduce-overhead"))
        cells: Row = {"batch": 1, "prompt": before.shape[1]}
        yield from _times("decode", "compiled", {name: run}, setting, cells)

    def prefill(tokens: int) -> Iterator[Row]:
        ids = prompt(1, tokens)
        runs = {
            name: functools.partial(model, ids, use_cache=False, logits_to_keep=1) for name, model in models.items()
        }
        yield from _times("prompt", "eager", runs, setting, {"batch": 1, "prompt": tokens})

    with torch.no_grad():
        for batch in (1,) if setting.dry else (1, 8):
            yield from setting.rows(
                f"eager decode, batch {batch}", functools.partial(steps, batch, lambda run: run, "eager")
            )
            if not setting.dry:
                yield from setting.rows(
                    f"decode as CUDA graphs, batch {batch}", functools.partial(steps, batch, graphed, "CUDA graph")
                )
        for tokens in (16,) if setting.dry else (512, 2048, 8192):
            yield from setting.rows(f"prompt of {tokens}", functools.partial(prefill, tokens))
        if setting.dry:
            yield {"left_out": "CUDA graphs, compiled decoding", "why": "a dry run"}
            return
        for name in ("dense", "gate ρ .5", "gate ρ .25"):
            yield from setting.rows(f"{name}, compiled decode", functools.partial(compiled, name))


def chain(vocab: int, batch: int, tokens: int, seed: int, device: str) -> Tensor:
    """Token ids [batch, tokens] that a model can learn: each follows from the one before, one in ten at random."""
    generator = torch.Generator().manual_seed(seed)
    used = min(vocab, 512)
    ids = torch.randint(0, used, (batch, tokens), generator=generator)
    noisy = torch.rand(batch, tokens, generator=generator) < 0.1
    for t in range(1, tokens):
        ids[:, t] = torch.where(noisy[:, t], ids[:, t], (ids[:, t - 1] * 5 + 7) % used)
    return ids.to(device)


def train(name: str, model: PreTrainedModel, setting: Setting) -> Iterator[Row]:
    """Some AdamW steps in bfloat16 by autocast: losses in nats at both ends, and tokens a second after a warm-up."""
    steps, batch, tokens = (3, 2, 16) if setting.dry else (STEPS, 16, 512)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=6e-4)
    losses: list[Tensor] = []
    warm, start = max(1, steps // 5), 0.0
    batches = [chain(model.config.vocab_size, batch, tokens, seed, setting.device) for seed in range(steps)]
    if not setting.dry:
        torch.cuda.reset_peak_memory_stats()
    for step, ids in enumerate(batches):
        if step == warm:
            start = _now(setting)
        with torch.autocast(setting.device, torch.bfloat16, enabled=not setting.dry):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    rate = (steps - warm) * batch * tokens / (_now(setting) - start)
    row: Row = {
        "model": name,
        "steps": steps,
        "batch": batch,
        "tokens": tokens,
        "first loss": round(float(losses[0]), 3),
    }
    row |= {"last loss": round(float(torch.stack(losses[-3:]).mean()), 3), "tokens/s": round(rate)}
    yield row | ({} if setting.dry else {"peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2)})


def _now(setting: Setting) -> float:
    if not setting.dry:
        torch.cuda.synchronize()
    return time.monotonic()


def training_rows(setting: Setting) -> Iterator[Row]:
    """Train the dense and the routed models for the same steps on the same tokens, each eagerly."""
    dense, weights = smollm2(setting)
    yield {"model": "weights", "what": weights + "; tokens of a seeded chain"}
    models = routed(dense, torch.randint(3, dense.config.vocab_size, (4, 64), device=setting.device), setting.dry)
    for name, model in {"dense": dense, **models}.items():
        yield from setting.rows(f"training of {name}", functools.partial(train, name, model, setting))
