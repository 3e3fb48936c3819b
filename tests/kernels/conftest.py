"""Inputs and comparisons that the tests of all backends share."""

import pytest
import torch
from torch import Tensor

from slms.kernels import Call, GateCall, routed_mlp, routed_mlp_reference
from slms.kernels.gate_reference import gate_activations, unit_scores


class Case(Call):
    """One call of `routed_mlp`."""

    def run(self, backend: str) -> Tensor:
        return routed_mlp(self, backend)

    def reference(self) -> Tensor:
        return routed_mlp_reference(self)

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers in another type."""
        moved = (t.detach().to(dtype).requires_grad_() if t.is_floating_point() else t for t in self.tensors())
        return self._replace(**dict(zip(self.tensor_names(), moved, strict=True)))

    def tensor_names(self) -> list[str]:
        return [name for name, value in zip(self._fields, self, strict=True) if isinstance(value, Tensor)]

    def tensors(self) -> list[Tensor]:
        return [value for value in self if isinstance(value, Tensor)]


def make(
    n=7,
    d=8,
    offsets=(0, 4, 8, 12),
    activation="gelu_new",
    gated=False,
    biased=True,
    density=0.5,
    dtype=torch.float32,
    seed=0,
) -> Case:
    """Random inputs whose outputs and gradients are of order one."""
    generator = torch.Generator().manual_seed(seed)
    f, p = offsets[-1], len(offsets) - 1

    def normal(*size, scale=1.0):
        values = torch.randn(*size, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    return Case(
        x=normal(n, d),
        W_in=normal(f, d, scale=d**-0.5),
        b_in=normal(f) if biased else None,
        W_gate=normal(f, d, scale=d**-0.5) if gated else None,
        b_gate=normal(f) if biased and gated else None,
        W_out=normal(f, d, scale=max(f, 1) ** -0.5),
        gates=(torch.rand(n, p, generator=generator) + 0.5).to(dtype).requires_grad_(),
        chosen=torch.rand(n, p, generator=generator) < density,
        offsets=offsets,
        activation=activation,
    )


def _between(values: Tensor, count: int) -> Tensor:
    """A number that `count` of the values reach, between two of them, so that rounding decides nothing."""
    ordered = torch.cat([torch.tensor([1e9]), values.detach().flatten().sort(descending=True).values, torch.zeros(1)])
    return (ordered[count] + ordered[min(count + 1, len(ordered) - 1)]) / 2


def gate_call(
    n=7,
    d=8,
    offsets=range(13),
    k=6,
    n_shared=0,
    activation="silu",
    biased=True,
    some_whole=False,
    seed=0,
    k_out=None,
    held=False,
) -> GateCall:
    """Random inputs of gate-selected neurons, in float32, whose weights need gradients."""
    generator = torch.Generator().manual_seed(seed)
    offsets = tuple(offsets)
    f = offsets[-1]

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=generator) * scale).requires_grad_()

    call = GateCall(
        x=normal(n, d),
        W_in=normal(f, d, scale=d**-0.5),
        b_in=normal(f) if biased else None,
        W_gate=normal(f, d, scale=d**-0.5),
        b_gate=normal(f) if biased else None,
        W_out=normal(f, d, scale=max(f, 1) ** -0.5),
        scale=torch.rand(f, generator=generator) + 0.5,
        offsets=offsets,
        k=k,
        n_shared=n_shared,
        activation=activation,
        k_out=k_out,
        out_scale=None if k_out is None else torch.rand(f, generator=generator) + 0.5,
    )
    if held:  # by thresholds that k units, and k_out neurons, of a token reach on average
        gate = gate_activations(call)
        scores = unit_scores(gate, call.scale, offsets)
        call = call._replace(least=_between(scores, k * n))
        if k_out is not None:
            h = (gate * torch.nn.functional.linear(call.x, call.W_in, call.b_in)).abs() * call.out_scale
            call = call._replace(least_out=_between(torch.where(scores >= call.least, h, 0), k_out * n))
    if not some_whole:
        return call
    sizes = unit_scores(gate_activations(call), call.scale, offsets).norm(dim=1).sort().values
    # Between two tokens: of rounding, no token of these is whole to one implementation and not to another.
    return call._replace(whole_above=(sizes[n * 2 // 3 - 1] + sizes[n * 2 // 3]) / 2 if n > 1 else sizes.sum() / 2)


# Relative to the largest number of the expected tensor, as the sums have that scale.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max().item()
    bound = TOLERANCE[dtype] * max(expected.double().abs().max().item(), 1e-3)
    assert error <= bound, f"{what}: error {error:.2e} is over {bound:.2e}"


def check(case: Case, backend: str) -> None:
    """Output and all gradients under a random upstream, against the reference in float64 on the same numbers."""
    exact = case.to(torch.float64)
    output, expected = case.run(backend), exact.reference()
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    dtype = output.dtype
    assert_close(output, expected, dtype, "output")
    grads = torch.autograd.grad(output, case.leaves, upstream)
    expected_grads = torch.autograd.grad(expected, exact.leaves, upstream.double())
    names = [name for name in case.tensor_names() if name != "chosen"]
    for name, actual, wanted in zip(names, grads, expected_grads, strict=True):
        assert_close(actual, wanted, dtype, f"gradient of {name}")


@pytest.fixture(scope="session")
def make_case():
    return make


@pytest.fixture(scope="session")
def make_gate_call():
    return gate_call


@pytest.fixture(scope="session")
def check_case():
    return check


@pytest.fixture(scope="session")
def close():
    return assert_close


@pytest.fixture
def poison_new_tensors(monkeypatch):
    """From its call on, tensors that PyTorch would leave uninitialised begin as NaN."""

    def poisoned(make):
        def empty(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return empty

    def poison():
        for module, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            monkeypatch.setattr(module, name, poisoned(getattr(module, name)))

    return poison


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's calibrations."""
    monkeypatch.setenv("SLMS_CACHE", str(tmp_path / "cache"))
