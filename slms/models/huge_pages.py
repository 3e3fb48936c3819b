"""Moves a model's weights into huge pages of memory, from which they are read faster."""

import mmap
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

LINE = 64  # bytes of a cache line
TOGETHER = 32 * 2**20  # bytes that weights share, so that small ones lie in huge pages too; freed when none is left

_made: WeakKeyDictionary[mmap.mmap, tuple[int, int]] = WeakKeyDictionary()
"""The memory asked for: where it begins and ends."""


@torch.no_grad()
def move_to_huge_pages(model: nn.Module) -> None:
    """Move all float32 parameters and buffers on the CPU, in place: the same tensors, in memory of 2 MB pages.

    A page of 4 KB holds less than two rows of SmolLM2-135M's W_out, so that reading chosen rows waits for the
    addresses of pages. The model's tensors that share memory still do; a tensor elsewhere that shared it (an earlier
    `state_dict()`, another model) keeps the old memory and no longer follows. What other processes share stays, and
    nothing happens where the system gives no such memory.
    """
    together: dict[int, list[Tensor]] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_shared()
        if plain and tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel() > 0:
            together.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    places = list(_made.values())
    groups: list[list[list[Tensor]]] = []
    room = 0
    for place, tensors in together.items():
        if any(start <= place < end for start, end in places):
            continue
        size = _whole(tensors)
        if size > room:
            groups.append([])
            room = max(TOGETHER, size)
        groups[-1].append(tensors)
        room -= size
    for group in groups:
        if not _move(group):
            return


def _whole(tensors: list[Tensor]) -> int:
    """The bytes of what these tensors share, in whole cache lines."""
    return -(-tensors[0].untyped_storage().nbytes() // LINE) * LINE


def _move(group: list[list[Tensor]]) -> bool:
    """Move tensors, those in a list sharing memory, into one piece of memory; False if there is none."""
    size = sum(map(_whole, group))
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # not Linux; a kernel without huge pages, or too little memory
        return False
    start = 0
    for tensors in group:
        before = tensors[0].untyped_storage()
        with torch.inference_mode(tensors[0].is_inference()):  # a tensor stays of its kind, so that it can be trained
            after = torch.frombuffer(memory, dtype=torch.uint8, count=before.nbytes(), offset=start).untyped_storage()
            after.copy_(before)
            for tensor in tensors:
                where = tensor.storage_offset(), tensor.shape, tensor.stride()
                tensor.data = torch.empty(0, dtype=torch.float32).set_(after, *where)
        if start == 0:
            _made[memory] = after.data_ptr(), after.data_ptr() + size
        start += _whole(tensors)
    return True
