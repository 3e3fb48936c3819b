"""Row-sparse products in Triton against their definition, on a CUDA device or in the interpreter."""

import pytest
import torch

from slms.kernels.gpu import sparse
from slms.kernels.gpu.sparse import dots, sums
from slms.kernels.neurons import dots_reference, sums_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def case(n, r, c, dtype=torch.float32, density=0.5, shared=False):
    g = torch.Generator().manual_seed(n + r + c)
    x, v = torch.randn(n, c, generator=g), torch.randn(n, r, generator=g)
    W, bias = torch.randn(r, c, generator=g) / max(c, 1) ** 0.5, torch.randn(r, generator=g)
    keep = torch.rand(1 if shared else n, r, generator=g) < density
    tensors = (t.to(DEVICE, dtype) for t in (x, v, W, bias))
    return *tensors, keep.expand(n, r).to(DEVICE)


def close(actual, exact):
    assert actual.shape == exact.shape
    if exact.numel():
        error = (actual.double() - exact).abs().max().item()
        assert error <= TOLERANCE[actual.dtype] * max(1.0, exact.abs().max().item())


@pytest.mark.parametrize("n", [1, 3, 16])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("r", "c", "density", "shared"),
    [(80, 48, 0.5, False), (70, 37, 0.3, True), (1, 3, 1.1, False), (40, 16, 0.0, False)],
)
def test_products(n, r, c, density, shared, dtype):
    x, v, W, bias, keep = case(n, r, c, dtype, density, shared)
    wide = [t.double() for t in (x, v, W, bias)]
    close(dots(x, W, keep, bias), dots_reference(wide[0], wide[2], keep, wide[3]))
    close(dots(x, W, keep), dots_reference(wide[0], wide[2], keep))
    close(sums(v, W, keep), sums_reference(wide[1], wide[2], keep))


@pytest.mark.parametrize("n", [1, 3])
def test_slices_of_several_steps(n, monkeypatch):
    monkeypatch.setattr(sparse, "SLICES", 2)
    _, v, W, _, keep = case(n, 150, 24)
    close(sparse.sums(v, W, keep), sums_reference(v.double(), W.double(), keep))


@pytest.mark.parametrize(("n", "r", "c"), [(0, 4, 3), (2, 0, 3)])
def test_nothing_to_do(n, r, c):
    x, v, W, bias, keep = case(n, r, c)
    assert dots(x, W, keep, bias).shape == (n, r)
    assert torch.equal(sums(v, W, keep), torch.zeros(n, c, device=DEVICE))


@pytest.mark.parametrize("n", [1, 3])
def test_rows_not_kept_are_never_read_and_all_is_written(n, poison_new_tensors):
    x, v, W, bias, keep = case(n, 70, 24)
    keep = keep.clone()
    keep[:, ::3] = False
    before = dots(x, W, keep, bias), sums(v, W, keep)
    W[::3], bias[::3], v[~keep] = float("nan"), float("nan"), float("nan")
    poison_new_tensors()
    assert torch.equal(before[0], dots(x, W, keep, bias)) and torch.equal(before[1], sums(v, W, keep))


def test_nan_propagates_to_its_token_alone():
    x, v, W, bias, keep = case(3, 40, 24, density=1.1)
    x[1, 0] = v[1, 3] = float("nan")
    for out in (dots(x, W, keep, bias), sums(v, W, keep)):
        assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


@pytest.mark.parametrize("n", [1, 3])
def test_strided_arguments(n):
    x, v, W, bias, keep = case(n, 40, 24)
    turned, spread = W.t().contiguous().t(), torch.stack([bias] * 2, 1)[:, 0]
    assert not (turned.is_contiguous() or spread.is_contiguous())
    assert torch.equal(dots(x, turned, keep.t().contiguous().t(), spread), dots(x, W, keep, bias))
    assert torch.equal(sums(v.t().contiguous().t(), turned, keep), sums(v, W, keep))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a CUDA device")
def test_cuda_graph():
    x, v, W, bias, keep = case(1, 80, 48)
    dots(x, W, keep, bias), sums(v, W, keep)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = dots(x, W, keep, bias), sums(v, W, keep)
    keep.logical_not_()
    graph.replay()
    assert torch.equal(outputs[0], dots(x, W, keep, bias)) and torch.equal(outputs[1], sums(v, W, keep))
