"""Training by thresholds: outputs, gradients and counts are those of the definition, number by number."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from slms.kernels import ACTIVATIONS, gate_mlp_counted, gate_train
from slms.kernels.gate_reference import choose_reference, keep_reference, per_neuron, unit_scores


def by_definition(call):
    a = ACTIVATIONS[call.activation](F.linear(call.x, call.W_gate, call.b_gate))
    h = a * F.linear(call.x, call.W_in, call.b_in)
    chosen = choose_reference(unit_scores(a, call.scale, call.offsets), call)
    kept = keep_reference(h, per_neuron(chosen, call.offsets), call)
    y = torch.where(kept, h, 0) @ call.W_out
    return y, torch.tensor([int(chosen.sum()), int(kept.sum()), chosen.numel()])


def same(call):
    leaves = [t.detach().requires_grad_() if t is not None else None for t in call[:6]]
    call = call._make([*leaves, *call[6:]])
    found = []
    for run in (gate_mlp_counted, by_definition):
        y, counts = run(call)
        (y.sum() + (y * y).sum()).backward()
        found.append((y.detach(), counts, [None if t is None else t.grad for t in leaves]))
        for t in leaves:
            if t is not None:
                t.grad = None
    (y, counts, grads), (wanted, ran, others) = found
    assert counts.equal(ran) and torch.equal(y, wanted)
    for grad, other in zip(grads, others, strict=True):
        assert (grad is None and other is None) or torch.equal(grad, other)
    return counts.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("units", [range(65), (0, 1, 1, 20, 47, 64)])
def test_numbers_and_gradients_are_the_definitions(make_gate_call, monkeypatch, units, dtype):
    monkeypatch.setattr(gate_train, "BLOCK", 5 * units[-1])  # blocks of five tokens, and a shorter last one
    seen = set()
    for activation, biased, whole, n_shared in itertools.product(ACTIVATIONS, (False, True), (False, True), (0, 2)):
        k = min(40, len(units) - 2)
        options = dict(activation=activation, biased=biased, some_whole=whole, k_out=16 if k == 40 else None)
        call = make_gate_call(13, 8, units, k, n_shared, held=True, **options)
        call = call._make([None if t is None else t.detach().to(dtype) for t in call[:6]] + list(call[6:]))
        ran, kept, possible = same(call)
        seen.add(ran == possible)
        assert 0 < kept <= 13 * units[-1] and possible == 13 * (len(units) - 1)
    assert False in seen


def test_autocast_no_tokens_and_nan(make_gate_call):
    call = make_gate_call(13, 8, range(65), 40, 0, k_out=16, held=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate_mlp_counted(call)[0].dtype == torch.bfloat16
    y, counts = gate_mlp_counted(call._replace(x=call.x[:0]))
    assert y.shape == (0, 8) and counts.tolist() == [0, 0, 0]
    x = call.x.detach().clone()
    x[2, 3] = math.nan
    y, _ = gate_mlp_counted(call._replace(x=x))
    assert y[2].isnan().all() and not y[torch.arange(13) != 2].isnan().any()
