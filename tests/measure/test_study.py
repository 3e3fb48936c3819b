"""The rule of the study: what is paired, which verdict follows, and what is refused."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slms.measure.study import Documents, StudyRun, arms_of, measure_speedups
from slms.metrics.functional import paired_over_seeds
from slms.models.base import init_base
from slms.models.decode_step import Step

TOKENS = torch.randint(20, 90, (40,), generator=torch.Generator().manual_seed(0))


def made(arm: str, seed: int, above: float, noise: float = 1e-3) -> tuple[StudyRun, Documents]:
    """A run whose documents lose 1 nat a token, `above` more and a little of its own."""
    g = torch.Generator().manual_seed(1000 * seed + len(arm))
    nats = (1 + above + noise * torch.randn(40, generator=g).double()) * TOKENS
    mean = float(nats.sum() / TOKENS.sum())
    run = StudyRun(
        arm,
        seed,
        f"{arm}-s{seed}",
        mean,
        1.0,
        mean / 5,
        10,
        640,
        2.0,
        6e4,
        0.6,
        0.5,
        decode_speedup=0.9 if seed == 0 else None,
        prompt_speedup=0.8 if seed == 0 else None,
    )
    return run, Documents(nats.tolist(), TOKENS.tolist())


def study(**arms: list[float]):
    runs, documents = [], {}
    for arm, differences in arms.items():
        for seed, above in enumerate(differences):
            run, documents[arm, seed] = made(arm, seed, above)
            runs.append(run)
    return {arm.arm: arm for arm in arms_of(runs, documents)}, documents


def test_verdicts_follow_the_paired_interval_and_need_three_seeds():
    found, documents = study(
        routed=[0.0, 0.01, -0.01],
        dense=[-0.02, -0.01, -0.03],  # .02 less at every seed
        static=[0.02, 0.03, 0.01],
        static_time=[0.02, -0.01, 0.0],  # now more, now less
        frozen_router=[0.05, 0.06],
    )
    verdicts = {arm: row.verdict for arm, row in found.items()}
    assert verdicts == {
        "routed": "",
        "dense": "dense beats routed",
        "static": "routed beats static",
        "static_time": "not shown",
        "frozen_router": "not shown (2 seeds of 3)",
    }
    assert found["dense"].minus_routed == pytest.approx(-0.02, abs=1e-3)
    nats = [[documents[arm, seed].nats for seed in range(3)] for arm in ("dense", "routed")]
    losses = torch.tensor(nats, dtype=torch.float64)
    assert (found["dense"].low, found["dense"].high) == paired_over_seeds(*losses, TOKENS)[1:3]
    assert found["frozen_router"].minus_routed == pytest.approx(0.05, abs=1e-3)  # against the same two seeds


def test_an_arm_is_the_mean_of_its_seeds():
    found, _ = study(routed=[0.0, 0.01, 0.02])
    assert found["routed"].nats == pytest.approx(1.01, abs=1e-3)
    assert found["routed"].over_base == pytest.approx(math.exp(0.01), rel=1e-3)
    assert found["routed"].kl == pytest.approx(1.01 / 5, abs=1e-3)
    assert found["routed"].nats_sd == pytest.approx(0.01, rel=0.1)
    assert found["routed"].decode_speedup == 0.9 and found["routed"].prompt_speedup == 0.8
    assert found["routed"].minus_routed is None
    alone, _ = study(dense=[0.1])
    assert alone["dense"].minus_routed is None and alone["dense"].verdict == "not shown (0 seeds of 3)"


def test_other_documents_are_refused():
    (a, of_a), (b, of_b) = made("routed", 0, 0.0), made("dense", 0, 0.0)
    with pytest.raises(ValueError, match="dense, seed 0: it was measured on other documents"):
        arms_of([a, b], {("routed", 0): of_a, ("dense", 0): of_b._replace(tokens=[1, *of_b.tokens[1:]])})


def test_a_token_and_a_prompt_are_timed():
    dense = init_base("stories-1m").eval()
    assert all(0.2 < speedup < 5 for speedup in measure_speedups(dense, init_base("stories-1m"), 0.6))


def test_both_run_by_the_same_engine():
    """Else a routed model's compiled loops would be timed against PyTorch's products."""
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    models = [LlamaForCausalLM(LlamaConfig(**sizes)) for _ in range(2)]
    assert all(speedup > 0 for speedup in measure_speedups(*models, 0.2))
    assert all(isinstance(vars(model.model).get("forward"), Step) for model in models)
