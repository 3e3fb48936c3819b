"""The plan for gate-selected neurons on a GPU, which needs none to be made."""

import pytest
import torch

from slms.kernels import backends
from slms.kernels.backends import GPU_UNITS
from slms.kernels.gate_gpu import gate_refusal, size_class
from slms.kernels.gate_plan import gate_plan


@pytest.mark.parametrize(
    ("n", "density", "gradients", "n_units", "smallest", "expected"),
    [
        (1, 0.5, False, 1536, 1, "rows"),
        (3, 0.5, False, 1536, 1, "dense"),  # four tokens need 94 % of the rows
        (8, 0.25, False, 1536, 1, "rows"),
        (9, 0.25, False, 1536, 1, "dense"),
        (1, 0.5, True, 1536, 1, "dense"),
        (17, 0.05, False, 1536, 1, "dense"),
        (512, 0.25, False, 16, 256, "grouped"),
        (512, 0.25, True, 16, 256, "grouped"),
        (511, 0.25, False, 16, 256, "dense"),
        (512, 0.5, False, 16, 256, "dense"),
        (512, 0.25, False, 96, 16, "dense"),
        (512, 0.25, False, 1024, 256, "dense"),  # more than the grouped kernels take
    ],
)
def test_the_plan(n, density, gradients, n_units, smallest, expected):
    picked, why = gate_plan(n, density, gradients, "cuda", torch.bfloat16, n_units, smallest)
    assert picked == expected and why


def test_what_triton_cannot_run_is_left_to_pytorch(monkeypatch):
    picked, why = gate_plan(1, 0.5, False, "cuda", torch.float64, 8)
    assert picked == "dense" and "float64" in why
    picked, why = gate_plan(1, 0.5, False, "cuda", torch.float32, GPU_UNITS + 1)
    assert picked == "dense" and f"up to {GPU_UNITS} pathways or units, and there are {GPU_UNITS + 1}" in why
    assert gate_refusal("cpu", torch.float32, 8) == "it needs a CUDA device and x is on cpu"
    monkeypatch.setattr(backends, "_installed", lambda package: False)
    assert "triton, which is not installed" in (gate_refusal("cuda", torch.float32, 8) or "")


def test_few_classes_of_sizes():
    assert {size_class(n) for n in range(1, 17)} == {1, 2, 4, 8, 16}
    assert {size_class(n) for n in (17, 511)} == {511} and size_class(10**6) == 512
