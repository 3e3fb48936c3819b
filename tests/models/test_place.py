"""Names of places: what they say, how they sort, what is refused."""

import pytest

from slms.models.place import PARTS, in_order, layer_of, parse_place, place_name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("layer", [0, 3, 47])
def test_a_name_says_what_it_was_made_from(layer, part):
    name = place_name(layer, part)
    assert (parse_place(name).layer, parse_place(name).part, layer_of(name)) == (layer, part, layer)


def test_places_sort_as_the_model_computes_them_and_other_names_come_last():
    wanted = ["L1.attn", "L1.mlp", "L1.resid", "L10.mlp", "residual.3", "mean"]
    assert in_order(["residual.3", "L10.mlp", "L1.resid", "mean", "L1.mlp", "L1.attn"]) == wanted


@pytest.mark.parametrize("name", ["", "3", "L3", "L.mlp", "L3.mlp.1", "l3.mlp", "L3.neurons", "L-1.mlp", "L3.mlp\n"])
def test_what_is_no_place_is_refused(name):
    with pytest.raises(ValueError, match="must be a layer and one of attn, mlp, resid"):
        parse_place(name)
