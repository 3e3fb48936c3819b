"""A whole routed MLP in one compiled call: router, top-k, gates, rows and output bias.

For one token, the router's three small operations and the choice cost more than the rows. A dozen operations of PyTorch
take 70 µs once a layer's weights have evicted their instructions from the cache; one compiled call takes 10.

Shapes: n tokens, d model, h router's hidden units, f neurons, p pathways.
"""

import numpy as np
import torch
from numba import carray
from numba.extending import register_jitable
from torch import Tensor

from slms.kernels.backends import tile_registers
from slms.kernels.call import Layer
from slms.kernels.cpu import loops
from slms.kernels.cpu.amx import tiles_loop
from slms.kernels.cpu.choice import choose, choose_for_token, scores
from slms.kernels.cpu.compiled import njit
from slms.kernels.cpu.memory import bytes_at, floats, keep, narrow, numbers, stay_apart
from slms.kernels.cpu.pointwise import CODES
from slms.kernels.cpu.rows import address, as_float, contiguous, packed, run
from slms.kernels.cpu.team import team_size
from slms.kernels.router import GATES


@njit
def choose_loop(a):
    """Write CHOSEN and GATES [n, p], and the initial values of the output to the first part of Y; X is float32."""
    n, p, d = a[loops.N], a[loops.P], a[loops.D]
    chosen, gates = carray(bytes_at(a[loops.CHOSEN]), (n, p)), carray(floats(a[loops.GATES]), (n, p))
    choose(a, scores, 0, chosen, gates, carray(floats(a[loops.Y]), (n, d)))


@njit
def fused_loop(a):
    """Compute the whole MLP on one thread; X and Y have the type of the weights. The arguments change."""
    n, p, d, size, target = a[loops.N], a[loops.P], a[loops.D], a[loops.SIZE], a[loops.Y]
    x, y = numbers(a[loops.X], n * d, size), carray(floats(target), (n, d))
    if size == 2:
        y = np.empty((n, d), np.float32)
    chosen, gates = np.empty((n, p), np.uint8), np.empty((n, p), np.float32)
    a[loops.X], a[loops.Y] = x.ctypes.data, y.ctypes.data
    a[loops.CHOSEN], a[loops.GATES] = chosen.ctypes.data, gates.ctypes.data
    choose(a, scores, 0, chosen, gates, y)
    loops.forward(a, 0, 1)
    if size == 2:
        narrow(y.ctypes.data, target, n * d)
    keep(x, y, chosen, gates)


@register_jitable
def fused_token(a):
    """The same for one token in float32."""
    stay_apart()
    p, y = a[loops.P], carray(floats(a[loops.Y]), (1, a[loops.D]))
    chosen, gates = np.empty((1, p), np.uint8), np.empty((1, p), np.float32)
    choose_for_token(a, chosen, gates, y)
    loops.forward_token(a, chosen[0], gates[0], 0, 1)
    keep(chosen, gates)


class FusedMLP:
    """See `kernels.prepare_fused`. Preparing takes 30 µs, or 70 cold, as long as the rows of a token."""

    def __init__(self, layer: Layer) -> None:
        router, p = layer.router, len(layer.offsets) - 1
        given = (*layer.weights, *router[:5], router.ramp, layer.b_out, layer.mean_out)
        # Held, because the loops know only addresses.
        self.held = [contiguous(tensor) for tensor in given]
        self.bytes = layer.W_out.nbytes * (2 if layer.W_gate is None else 3)
        self.density = router.k / p
        self.copied = any(ours is not tensor for ours, tensor in zip(self.held, given, strict=True))
        addresses = [address(tensor) for tensor in self.held]
        first, last, bias, ramp = addresses[5:7], addresses[7:9], addresses[9], addresses[10]
        sizes = 0, layer.W_in.shape[1], p, CODES[layer.activation], layer.W_in.element_size()
        self.arguments = packed(
            [
                *(*sizes, 0, 0),
                *(0, *addresses[:5], 0, 0, 0),
                *[0] * (loops.ROUTER_IN - loops.Y - 1),
                *(*first, *last, len(router.W_in) if router.W_in is not None else 0, router.k, GATES[router.gate]),
                *(ramp if router.gate in ("ramp", "blend") else 0, bias, *addresses[11:], router.n_shared),
            ],
            layer.offsets,
        )

    def __call__(self, x: Tensor, backend: str) -> Tensor:
        """Output [n, d] of x [n, d] by the backend that `fuses` named."""
        n, a = len(x), self.arguments.copy()
        team = team_size(self.bytes * min(1.0, n * self.density), 4 * x.numel() if backend == "rows" else 0)
        if backend == "rows" and team > 1:
            return self._by_rows(x, a, team)
        x = x if x.is_contiguous() else x.contiguous()
        y = torch.empty_like(x)
        a[loops.N], a[loops.X], a[loops.Y] = n, x.data_ptr(), y.data_ptr()
        if backend == "amx":
            assert tile_registers(), backend  # without, the processor would end the process
            run(tiles_loop, team, a)
        else:
            fused_loop(a)
        return y

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`kernels.choose` of x [n, d], alone: gates [n, p], and the choice [n, p]."""
        gates, chosen, _ = self._choose(x, self.arguments.copy(), torch.empty(x.shape, dtype=torch.float32))
        return gates, chosen

    def _choose(self, x: Tensor, a: np.ndarray, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Choose for x [n, d] with arguments a; write the initial values of the output to y.

        Returns gates, choice and x in float32; a has their addresses, so they must live as long as it is used.
        """
        n, p, wide = len(x), int(a[loops.P]), as_float(x)
        gates, chosen = torch.empty(n, p, dtype=torch.float32), torch.empty(n, p, dtype=torch.bool)
        a[loops.N], a[loops.X], a[loops.Y] = n, address(wide), y.data_ptr()
        a[loops.GATES], a[loops.CHOSEN] = gates.data_ptr(), chosen.data_ptr()
        choose_loop(a)
        return gates, chosen, wide

    def _by_rows(self, x: Tensor, a: np.ndarray, team: int) -> Tensor:
        """Run on several threads, each with its share of the neurons, after one thread has chosen."""
        y = torch.zeros(team, *x.shape, dtype=torch.float32)
        held = self._choose(x, a, y)
        run(loops.forward_loop, team, a)
        del held
        return y.sum(0).to(x.dtype)
