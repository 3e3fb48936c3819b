"""Gate-selected neurons for few tokens, and every choice, in Triton: against the reference."""

import itertools
import math

import pytest
import torch

from slms.kernels import gate_mlp_reference
from slms.kernels.gate import units_of
from slms.kernels.gate_reference import keep_reference, select_reference, unit_scores
from slms.kernels.gpu.gate import gate_choice, gate_keep, gate_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNITS = {"single neurons": range(33), "equal": range(0, 65, 16), "uneven": (0, 1, 1, 20, 37, 38)}
HALF = {torch.float16: 4e-3, torch.bfloat16: 2e-2}


def there(call, dtype=torch.float32):
    """The call on the device, without gradients, its first six tensors in a type."""
    tensors = [None if t is None else t.detach().to(DEVICE, dtype) for t in call[:6]]
    return call._make([*tensors, *(t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in call[6:])])


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(("n", "d"), [(1, 33), (3, 40)])
def test_rows(make_gate_call, close, units, n, d):
    p = len(UNITS[units]) - 1
    for k, n_shared, biased, some_whole in ((1, 0, True, False), (p // 2, 1, False, True), (p, 0, True, False)):
        made = make_gate_call(n, d, UNITS[units], k, n_shared, biased=biased, some_whole=some_whole, seed=3)
        call = there(made)
        close(gate_rows(call, units_of(call.offsets)), gate_mlp_reference(call), torch.float32, f"{k} {biased}")


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("n", [1, 3])
def test_rows_by_a_threshold(make_gate_call, close, units, n):
    for some_whole in (False, True):
        call = there(make_gate_call(n, 24, UNITS[units], 2, 1, some_whole=some_whole, held=True))
        close(gate_rows(call, units_of(call.offsets)), gate_mlp_reference(call), torch.float32, f"{some_whole}")


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(("n", "d"), [(1, 33), (3, 40)])
def test_rows_by_a_second_choice(make_gate_call, close, n, d, held):
    for k, k_out, n_shared, some_whole in ((20, 8, 0, False), (20, 8, 1, True), (32, 0, 0, False), (32, 20, 2, True)):
        made = make_gate_call(n, d, range(33), k, n_shared, some_whole=some_whole, k_out=k_out, held=held, seed=3)
        call = there(made)
        close(gate_rows(call, ()), gate_mlp_reference(call), torch.float32, f"{k} {k_out} {some_whole}")


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("n", [1, 16])
def test_a_second_choice_in_sixteen_bits(make_gate_call, dtype, n):
    """Worths are far apart, so that no rounding changes a choice."""
    call = there(make_gate_call(n, 40, range(33), 9, some_whole=True, k_out=4), dtype)
    call = call._replace(scale=torch.logspace(-30, 30, 32, device=DEVICE))
    call = call._replace(out_scale=torch.logspace(30, -30, 32, device=DEVICE))
    wanted = gate_mlp_reference(call._make([t.float() for t in call[:6]] + list(call[6:])))
    torch.testing.assert_close(gate_rows(call, ()).float(), wanted, rtol=HALF[dtype], atol=HALF[dtype])


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_rows_that_a_second_choice_drops_are_never_read(make_gate_call, poison_new_tensors, n, held):
    call = there(make_gate_call(n, 40, range(65), 20, k_out=8, held=held))
    gate, up = (torch.nn.functional.linear(call.x, *w) for w in ((call.W_gate, call.b_gate), (call.W_in, call.b_in)))
    chosen, kept = gate_choice(gate, call, ()), gate_keep(up, gate, call)
    assert torch.equal(kept, keep_reference(torch.nn.functional.silu(gate) * up, chosen, call))
    assert kept.sum() == 8 * n and (held or kept.sum(1).tolist() == [8] * n)
    before = gate_rows(call, ())
    for tensor, needed in ((call.W_in, chosen), (call.b_in, chosen), (call.W_out, kept)):
        assert not needed.any(0).all()
        tensor[~needed.any(0)] = math.nan
    poison_new_tensors()
    assert torch.equal(gate_rows(call, ()), before)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("n", [1, 16])
def test_rows_in_sixteen_bits(make_gate_call, dtype, n):
    """Scores are far apart, so that no rounding changes the choice."""
    call = there(make_gate_call(n, 40, range(33), 9, some_whole=True), dtype)
    call = call._replace(scale=torch.logspace(-30, 30, 32, device=DEVICE))
    wanted = gate_mlp_reference(call._make([t.float() for t in call[:6]] + list(call[6:])))
    torch.testing.assert_close(gate_rows(call, ()).float(), wanted, rtol=HALF[dtype], atol=HALF[dtype])


@pytest.mark.parametrize("n_shared", [0, 2])
@pytest.mark.parametrize("units", UNITS)
def test_the_choice_of_equals_zeros_infinity_and_nan(make_gate_call, units, n_shared):
    """Gates of a few values have many equal scores; relu is exact."""
    call = there(make_gate_call(6, 4, UNITS[units], activation="relu", n_shared=n_shared))
    call = call._replace(scale=torch.ones_like(call.scale))
    generator = torch.Generator().manual_seed(0)
    pick = torch.tensor([0.0, 1.0, 2.0, -1.0, 1e-40, math.inf, math.nan])
    gate = pick[torch.randint(0, 7, (6, len(call.scale)), generator=generator)]
    gate[:3] = gate[:3].nan_to_num(1.0, 1.0)
    gate = gate.to(DEVICE)
    p = len(call.offsets) - 1
    scores = unit_scores(gate.relu(), call.scale, call.offsets)
    for k in {n_shared, max(n_shared, p // 3)}:
        chosen = gate_choice(gate, call._replace(k=k), units_of(call.offsets))
        assert torch.equal(chosen, select_reference(scores, k, n_shared))


@pytest.mark.parametrize("f", [1, 100, 1536])
def test_any_number_of_neurons(make_gate_call, f):
    """Random scores of all magnitudes: the last one chosen is exact to its last bit."""
    call = there(make_gate_call(3, 2, range(f + 1), activation="relu"))
    gate = torch.rand(3, f, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gate[1] = 1 + torch.arange(f, device=DEVICE) * 2**-23  # neighbours
    gate[2] = torch.logspace(-44, 38, f)
    call = call._replace(scale=torch.ones_like(call.scale))
    for k in {1, f // 2, f - 1}:
        assert torch.equal(gate_choice(gate, call._replace(k=k), ()), select_reference(gate, k, 0))


@pytest.mark.parametrize(("units", "n"), itertools.product(UNITS, (1, 3)))
def test_rows_not_chosen_are_never_read_and_all_is_written(make_gate_call, poison_new_tensors, units, n):
    call = there(make_gate_call(n, 40, UNITS[units], 2))
    offsets = units_of(call.offsets)
    sizes = torch.tensor(call.offsets).diff().to(DEVICE)
    gate = torch.nn.functional.linear(call.x, call.W_gate, call.b_gate)
    skipped = ~gate_choice(gate, call, offsets).any(0).repeat_interleave(sizes)
    assert skipped.any()
    before = gate_rows(call, offsets)
    for tensor in (call.W_in, call.b_in, call.W_out):
        tensor[skipped] = math.nan
    poison_new_tensors()
    assert torch.equal(gate_rows(call, offsets), before)


@pytest.mark.parametrize("n", [1, 3])
def test_strided_inputs_and_nan(make_gate_call, n):
    call = there(make_gate_call(n, 24, some_whole=True))
    turned = call._make(
        [t.t().contiguous().t() if t.dim() == 2 else torch.stack([t, t], 1)[:, 0] for t in call[:7]] + list(call[7:])
    )
    y = gate_rows(call, ())
    torch.testing.assert_close(gate_rows(turned, ()), y)
    call.x[0, 1] = math.nan
    other = gate_rows(call, ())
    assert other[0].isnan().all() and torch.equal(other[1:], y[1:])


@pytest.mark.parametrize(("n", "f", "k"), [(0, 12, 6), (2, 12, 0), (1, 12, 0)])
def test_nothing_to_do(make_gate_call, n, f, k):
    call = there(make_gate_call(n, 8, range(f + 1), k))
    assert torch.equal(gate_rows(call, ()), torch.zeros(n, 8, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("k_out", [None, 8])
@pytest.mark.parametrize("n", [1, 3])
def test_cuda_graph(make_gate_call, n, k_out):
    call = there(make_gate_call(n, 48, range(81), 20, k_out=k_out))
    gate_rows(call, ())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gate_rows(call, ())
    call.x.neg_()
    graph.replay()
    assert torch.equal(y, gate_rows(call, ()))
