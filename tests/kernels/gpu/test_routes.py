"""Route metadata against sorting on the host."""

import pytest
import torch

from slms.kernels.gpu.routes import find_routes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("n", "p", "density"),
    [(200, 5, 0.4), (1, 16, 0.3), (0, 3, 0.5), (70, 16, 0.0), (65, 1, 1.1), (90, 32, 0.3), (40, 200, 0.1)],
)
def test_routes(n, p, density):
    chosen = torch.rand(n, p, generator=torch.Generator().manual_seed(0)) < density
    routes = find_routes(chosen.to(DEVICE), 16, n * p)
    pathway, token = chosen.t().nonzero(as_tuple=True)
    assert routes.starts.tolist() == [0, *chosen.sum(0).cumsum(0).tolist()]
    assert routes.token[: len(token)].tolist() == token.tolist()
    assert routes.pair.cpu()[token, pathway].tolist() == list(range(len(token)))
    assert (routes.pair.cpu()[~chosen] == -1).all()
    starts = routes.starts.tolist()
    tiles = [(i, row) for i in range(p) for row in range(starts[i], starts[i + 1], 16)]
    found = list(zip(routes.tile_pathway.tolist(), routes.tile_row.tolist(), strict=True))
    assert routes.n_tiles.item() == len(tiles) <= len(found)
    assert found[: len(tiles)] == tiles


@pytest.mark.parametrize("capacity", [37, 16])
def test_more_pairs_than_room_stay_in_bounds(capacity):
    chosen = torch.ones(20, 3, dtype=torch.bool, device=DEVICE)
    routes = find_routes(chosen, 16, capacity)
    assert routes.starts.tolist() == [min(20 * i, capacity) for i in range(4)]
    assert routes.n_tiles.item() <= len(routes.tile_row)
    pair = routes.pair.t().flatten()
    assert pair[:capacity].tolist() == list(range(capacity))
    assert (pair[capacity:] >= capacity).all()
    assert routes.token.tolist() == [i % 20 for i in range(capacity)]
