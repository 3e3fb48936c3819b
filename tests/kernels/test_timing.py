"""The clock and the random inputs of calibrations and benchmarks."""

import time

import pytest
import torch

from slms.kernels.costs import Shape
from slms.kernels.timing import graphed, random_call, time_together


def test_random_call_has_the_density_asked_for():
    call = random_call(Shape(8, 13, 4, True, "bfloat16", "cpu", True), 5, 0.5, "silu")
    assert call.chosen.sum(1).tolist() == [2] * 5
    assert call.offsets == (0, 3, 6, 9, 13)
    assert call.W_gate.shape == (13, 8)
    assert call.x.requires_grad and call.gates.requires_grad
    least = random_call(Shape(8, 13, 4, False, "float32", "cpu", False), 5, 0.0, "gelu")
    assert least.chosen.sum(1).tolist() == [1] * 5


def test_time_together_orders_alternatives():
    counts = {"short": 0, "long": 0}

    def work(name, seconds):
        counts[name] += 1
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    alternatives = {"short": lambda: work("short", 0.0005), "long": lambda: work("long", 0.005)}
    times = time_together(alternatives, "cpu", 0.0)
    assert counts["short"] == counts["long"] >= 6
    assert times["short"].p20 <= times["short"].p50 <= times["short"].p80
    assert times["short"].p50 < times["long"].p50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs and events need a CUDA device")
def test_a_captured_call_does_the_same_work():
    source, target = torch.arange(8.0, device="cuda"), torch.zeros(8, device="cuda")
    replay = graphed(lambda: target.copy_(source * 2))
    source.add_(1)
    assert time_together({"graph": replay}, "cuda", 0.0)["graph"].p50 > 0
    assert torch.equal(target, source * 2)
