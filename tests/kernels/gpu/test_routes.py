"""Route metadata against sorting on the host."""

import pytest
import torch

from kernels.gpu.routes import find_routes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("n", "p", "density"), [(200, 5, 0.4), (1, 16, 0.3), (0, 3, 0.5), (70, 16, 0.0), (65, 1, 1.1)])
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
