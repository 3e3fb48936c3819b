import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

import slms
from slms.data.text import Blocks
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def routed_with_text():
    """A routed model of 5 pathways a place, and a text of 24 blocks with padding and labels."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 40, (24, 16))
    documents = np.sort(rng.integers(0, 9, 24 * 16)).reshape(24, 16)
    documents[-1, 8:] = -1  # padding
    blocks = Blocks(ids.astype(np.uint16), documents, {"pos": (ids % 3).astype(np.int16)}, {"pos": tuple("abc")})
    torch.manual_seed(0)
    dense = GPTNeoForCausalLM(tiny_config(50, intermediate_size=20, max_position_embeddings=32))
    for parameter in dense.parameters():
        parameter.data.mul_(4)
    routing = slms.RoutingConfig(n_pathways=5, k=2, every_n_layers=1, router_hidden=4, gate="unit")
    return slms.route(dense, routing, torch.from_numpy(ids)), blocks
