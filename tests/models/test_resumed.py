"""A pass that begins at a layer gives what a whole pass gives, for every family of models."""

import pytest
import torch

from slms.models.anatomy import family_of
from slms.models.resumed import Resumed


@pytest.mark.parametrize("layer", [0, 2])
def test_the_rest_of_the_pass_is_that_of_a_whole_one(tiny, tokens, family, layer):
    model, ids = tiny(family), tokens(2, 12)
    layers, ran = model.get_submodule(family_of(model).layers), []
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        resumed = Resumed(model, layer)
        hidden = resumed.read(ids)
        for i, one in enumerate(layers):
            getattr(one, family_of(model).mlp).register_forward_hook(lambda *_, i=i: ran.append(i))
        with resumed.entering(hidden):
            again = model(torch.zeros_like(ids) if layer else ids, use_cache=False).logits
        assert torch.allclose(again, whole, atol=1e-5)
        assert ran == list(range(layer, len(layers)))
        with resumed.entering(hidden + torch.linspace(-1, 1, hidden.shape[-1])):
            changed = model(ids, use_cache=False).logits
        assert torch.allclose(changed, whole, atol=1e-5) == (layer == 0)
        assert torch.equal(model(ids, use_cache=False).logits, whole), "nothing is left behind"
    assert not any("forward" in vars(one) for one in layers)
