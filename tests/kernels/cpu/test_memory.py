"""Numbers at addresses: widened, narrowed, and their bits."""

import numba
import pytest
import torch

from slms.kernels.cpu import memory
from slms.kernels.cpu.compiled import OPTIONS


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_numbers(dtype, size):
    widened = numba.njit(**OPTIONS)(lambda address, count, size: memory.numbers(address, count, size))
    x = torch.randn(9, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert widened(x.data_ptr(), 9, size).tolist() == x.float().tolist()
    assert len(widened(0, 9, size)) == 0  # an input that is None


def test_narrow_rounds_as_pytorch_does():
    run = numba.njit(**OPTIONS)(lambda source, target, count: memory.narrow(source, target, count))
    random = torch.randn(99, generator=torch.Generator().manual_seed(0))
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, 0.0, -0.0, torch.inf, -torch.inf])
    for source in (random, halfway):
        target = torch.empty(len(source) + 1, dtype=torch.bfloat16).fill_(7)
        run(source.data_ptr(), target.data_ptr(), len(source))
        assert torch.equal(target[:-1].view(torch.int16), source.bfloat16().view(torch.int16))
        assert target[-1] == 7
    not_numbers = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    target = torch.empty(3, dtype=torch.bfloat16)
    run(not_numbers.data_ptr(), target.data_ptr(), 3)
    assert target.isnan().all()


def test_bits():
    run = numba.njit(lambda value: memory.bits_as_float(memory.float_as_bits(value)))
    assert run(torch.tensor(-1.5).numpy()[()]) == -1.5
