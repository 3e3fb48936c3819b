"""Hooks on MLPs against the MLPs themselves, in every architecture."""

import pytest
import torch

from slms.models.activations import mlp_inputs, mlp_outputs, neuron_activations, run_up_to
from slms.models.anatomy import find_mlps
from slms.models.weights import read_mlp


def test_captures_are_inputs_neurons_and_outputs(tiny, tokens, family):
    model = tiny(family)
    with (
        torch.no_grad(),
        mlp_inputs(model, [0, 2]) as x,
        neuron_activations(model) as h,
        mlp_outputs(model, [2]) as y,
    ):
        model(tokens(2, 7))
    assert (sorted(x), sorted(h), sorted(y)) == ([0, 2], [0, 1, 2], [2])
    assert x[0].shape == (14, 24) and h[1].shape == (14, 37) and y[2].shape == (2, 7, 24)
    w = read_mlp(find_mlps(model)[2])
    through_neurons = h[2] @ w.W_out + (0 if w.b_out is None else w.b_out)
    torch.testing.assert_close(through_neurons.view(2, 7, 24), y[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(find_mlps(model)[2](x[2]).view(2, 7, 24), y[2])


def test_captures_end_with_their_block_and_carry_gradients(tiny, tokens):
    model = tiny("gpt_neo")
    with mlp_outputs(model, [1]) as y:
        model(tokens(1, 5))
    assert y[1].requires_grad
    before = y[1]
    model(tokens(1, 6))
    assert y[1] is before
    assert not find_mlps(model)[1]._forward_hooks


def test_capture_refuses_a_layer_that_is_not_there(tiny):
    with (
        pytest.raises(ValueError, match="`layers` names 3; the model has layers 0 to 2"),
        mlp_inputs(tiny("gpt2"), [3]),
    ):
        pass


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_model_runs_no_further_than_asked(tiny, tokens, family, last):
    model, ran = tiny(family), []
    mlps = find_mlps(model)
    for index, mlp in mlps.items():
        mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head"))
    with neuron_activations(model, [last]) as whole, torch.no_grad():
        model(tokens(2, 9))
    ran.clear()
    with neuron_activations(model, [last]) as found:
        run_up_to(model, tokens(2, 9), last)
    assert ran == list(range(last + 1))
    torch.testing.assert_close(found[last], whole[last])
    with torch.no_grad():
        model(tokens(2, 9))
    assert ran[-1] == "head", "no hook stays"
