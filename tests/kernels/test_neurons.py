"""Row-sparse products against their definition, and that rows which are not kept are never read."""

import pytest
import torch

from slms.kernels import neurons
from slms.kernels.neurons import dots, dots_reference, sums, sums_reference

SIZES = [(1, 7, 5), (3, 16, 8), (2, 1, 1), (0, 4, 3), (2, 13, 1)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def case(n, r, c, dtype=torch.float32, density=0.5):
    g = torch.Generator().manual_seed(n + r + c)
    x, v = torch.randn(n, c, generator=g).to(dtype), torch.randn(n, r, generator=g).to(dtype)
    W, bias = torch.randn(r, c, generator=g).to(dtype), torch.randn(r, generator=g).to(dtype)
    return x, v, W, bias, torch.rand(n, r, generator=g) < density


def one_by_one(x, v, W, bias, keep):
    """Both products in float64 from their sums, one kept row at a time."""
    n, r = keep.shape
    u, y = torch.zeros(n, r, dtype=torch.float64), torch.zeros(n, W.shape[1], dtype=torch.float64)
    for t in range(n):
        for i in range(r):
            if keep[t, i]:
                u[t, i] = (x[t].double() * W[i].double()).sum() + bias[i].double()
                y[t] += v[t, i].double() * W[i].double()
    return u, y


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.1])
def test_products(size, dtype, density):
    x, v, W, bias, keep = case(*size, dtype, density)
    u, y = one_by_one(x, v, W, bias, keep)
    for actual, wanted in (
        (dots(x, W, keep, bias), u),
        (dots_reference(x, W, keep, bias), u),
        (sums(v, W, keep), y),
        (sums_reference(v, W, keep), y),
    ):
        assert actual.dtype == dtype
        error = (actual.double() - wanted).abs().max() if wanted.numel() else torch.tensor(0.0)
        assert error <= TOLERANCE[dtype] * max(1.0, wanted.abs().max().item() if wanted.numel() else 0.0)


def test_rows_not_kept_are_never_read():
    x, v, W, bias, keep = case(3, 16, 8)
    keep[:, ::3] = False
    before = dots(x, W, keep, bias), sums(v, W, keep)
    W[::3], bias[::3], v[:, ::3] = float("nan"), float("nan"), float("nan")
    assert torch.equal(before[0], dots(x, W, keep, bias)) and torch.equal(before[1], sums(v, W, keep))


def test_nan_propagates_to_its_token_alone():
    x, v, W, bias, keep = case(3, 16, 8, density=1.1)
    x[1, 0] = v[1, 3] = float("nan")
    for out in (dots(x, W, keep, bias), sums(v, W, keep)):
        assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


def test_strided_arguments():
    x, v, W, bias, keep = case(3, 16, 8)
    turned = [t.t().contiguous().t() for t in (x, v, keep)]
    assert torch.equal(dots(turned[0], W, turned[2], bias), dots(x, W, keep, bias))
    assert torch.equal(sums(turned[1], W, turned[2]), sums(v, W, keep))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_matrix_is_never_copied(monkeypatch, dtype):
    """What the loops are given is the matrix's own memory; a view that would have to be copied is refused."""
    x, v, W, bias, keep = case(3, 16, 8, dtype)
    read = []
    for name in ("_dots", "_sums"):
        monkeypatch.setattr(neurons, name, lambda *arrays: read.append(arrays[1].ctypes.data))
    dots(x, W, keep, bias)
    sums(v, W, keep)
    assert read == [W.data_ptr()] * 2
    view = W.t().contiguous().t()
    for product in (lambda: dots(x, view, keep), lambda: sums(v, view, keep)):
        with pytest.raises(ValueError, match=r"`W` has strides \(1, 16\); its rows must follow each other"):
            product()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(W=torch.zeros(16, 8, dtype=torch.float64)),
            "`W` is torch.float64 on cpu, tokens are 3; row-sparse products know",
        ),
        (dict(W=torch.zeros(16, 8, device="meta")), "`W` is torch.float32 on meta"),
        (dict(W=torch.zeros(16, 8).bfloat16()), "`W` is torch.bfloat16; it must be of the type"),
        (dict(W=torch.zeros(15, 8)), r"`W` has shape \(15, 8\); the other arguments ask for \(16, 8\)"),
        (dict(keep=torch.zeros(3, 16)), "`keep` is torch.float32"),
        (dict(keep=torch.zeros(2, 16, dtype=torch.bool)), r"`keep` is torch.bool \(2, 16\)"),
    ],
)
def test_what_does_not_fit(change, message):
    x, v, W, _, keep = case(3, 16, 8)
    given = {"W": W, "keep": keep} | change
    with pytest.raises(ValueError, match=message):
        dots(x, given["W"], given["keep"])
    with pytest.raises(ValueError, match=r"`W`|`keep`"):
        sums(v, given["W"], given["keep"])
