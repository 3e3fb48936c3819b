"""How many threads a compiled loop runs on: PyTorch's own (OpenMP) if its library is GNU's, else one.

This needs no numba, so that estimates can ask.
"""

import ctypes
import functools
import math

import torch

TEAM_BYTES = 3 << 20  # a quarter of a Pythia-70m MLP on two threads took 254 µs, on one 164; of a 410m one 393 and 504
SCRATCH = 4 << 30  # the most bytes that the threads of a call reserve together


@functools.cache
def gnu_openmp() -> tuple[ctypes.CDLL | None, int, int]:
    """PyTorch's OpenMP library, if it is GNU's, and the addresses of its functions for thread and team size."""
    try:
        library = ctypes.CDLL(None)
        library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        names = (library.omp_get_thread_num, library.omp_get_num_threads)
    except (AttributeError, OSError, TypeError):  # another library, or a system that does not list its symbols
        return None, 0, 0
    thread, threads = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in names)
    return library, thread, threads


def team_size(bytes_read: float = math.inf, bytes_each: float = 0) -> int:
    """The number of threads for a loop: one if waking others takes longer than reading `bytes_read` bytes.

    bytes_each: bytes that each thread reserves; as many threads run as fit into SCRATCH, but at least one.
    """
    threads = torch.get_num_threads()
    if threads == 1 or bytes_read < TEAM_BYTES or gnu_openmp()[0] is None:
        return 1
    return threads if bytes_each * threads <= SCRATCH else max(1, int(SCRATCH // bytes_each))
