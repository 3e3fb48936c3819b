"""Moves a model's weights into huge pages of memory, from which they are read faster."""

import mmap

import torch
from torch import Tensor, nn

LINE = 64  # bytes of a cache line


def move_to_huge_pages(model: nn.Module) -> None:
    """Move all float32 parameters and buffers on the CPU, in place: the same tensors, in memory of 2 MB pages.

    A page of 4 KB holds less than two rows of SmolLM2-135M's W_out, so that reading chosen rows waits for the
    addresses of pages. Tensors that share memory still do. What other processes share stays, and nothing happens where
    the system has no huge pages to ask for.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    together: dict[int, list[Tensor]] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_shared()
        if plain and tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel() > 0:
            together.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    if not together:
        return
    sizes = [-(-tensors[0].untyped_storage().nbytes() // LINE) * LINE for tensors in together.values()]
    memory = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    start = 0
    for tensors, size in zip(together.values(), sizes, strict=True):
        before = tensors[0].untyped_storage()
        after = torch.frombuffer(memory, dtype=torch.uint8, count=before.nbytes(), offset=start).untyped_storage()
        after.copy_(before)
        for tensor in tensors:
            where = tensor.storage_offset(), tensor.shape, tensor.stride()
            tensor.data = torch.empty(0, dtype=torch.float32).set_(after, *where)
        start += size
