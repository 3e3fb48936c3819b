"""The width of a dense MLP that takes the time of a routed one, with given clocks and with the real one."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slms.kernels.timing import Spread
from slms.measure import equal_time as module
from slms.measure.equal_time import SHARES, equal_time, widest
from slms.models.base import init_base
from slms.models.decode_step import Step
from slms.routing import RoutingConfig


@pytest.mark.parametrize("target, share", [(10.0, 0.5), (12.0, 0.625), (99.0, 1.0), (0.1, 0.125)])
def test_widths_follow_the_times(monkeypatch, target, share):
    """A clock that takes 2 µs + 16 µs a share; a share of .125 is the narrowest tried."""

    def clock(runs, device, seconds):
        assert list(runs) == ["routed", *map(str, SHARES)]
        for run in runs.values():
            run()
        times = {"routed": target} | {str(s): 2 + 16 * s for s in SHARES}
        return {name: Spread(t, t, t) for name, t in times.items()}

    monkeypatch.setattr(module, "time_together", clock)
    found = equal_time(init_base("stories-1m"), RoutingConfig(layers=[1, 3], router="linear"))
    assert found.widths == {1: round(256 * share), 3: round(256 * share)}
    assert found.routed_us == target and found.dense_us["1.0"] == 18.0


def test_a_slower_narrow_one_hides_nothing():
    """Times that fall are noise; they are made monotone, so that a width is never chosen for being lucky."""
    assert widest(4.0, [0.25, 0.5, 0.75, 1.0], [1.0, 5.0, 3.0, 6.0]) == pytest.approx(0.4375)


@pytest.mark.parametrize("served", [True, False])
def test_a_llama_is_timed_as_it_decodes(monkeypatch, served):
    """In decoding steps of the compiled loop, the routed one at the k that its rule holds; else its MLPs alone."""
    ran, run = [], Step._run

    def watched(step, kwargs):
        ran.append((out := run(step, kwargs)) is not None)
        return out

    def clock(runs, device, seconds):
        for one in runs.values():
            one()
        times = {"routed": 6.0} | {str(s): 2 + 16 * s for s in SHARES}
        return {name: Spread(t, t, t) for name, t in times.items()}

    rules, made = [], module.with_fresh_mlps

    def fresh(model, config):
        rules.append(config.rule)
        return made(model, config)

    monkeypatch.setattr(module, "with_fresh_mlps", fresh)
    monkeypatch.setattr(Step, "_run", watched)
    monkeypatch.setattr(module, "time_together", clock)
    monkeypatch.setattr(module, "serves", lambda model: served)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=2)
    base = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=60)).eval()
    routing = RoutingConfig(router="gate", n_pathways=48, k=16, k_out=8, every_n_layers=1, rule="controlled")
    try:
        found = equal_time(base, routing)
    finally:
        torch.set_num_threads(before)
    assert found.widths == dict.fromkeys(range(5), 12) and base.config.num_hidden_layers == 5
    assert ran == [True] * (len(SHARES) + 1) * served
    assert rules == ["top_k"]


def test_the_real_clock():
    found = equal_time(init_base("stories-1m"), RoutingConfig(layers=[1], router="linear", k=1), seconds=0.2)
    assert 1 <= found.widths[1] <= 256 and found.routed_us > 0 and len(found.dense_us) == len(SHARES)
