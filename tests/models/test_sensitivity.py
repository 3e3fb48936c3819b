"""How predictions depend on an MLP's or attention's output, against the KL divergence that a small change causes."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from slms.models.anatomy import find_attentions, find_mlps
from slms.models.sensitivity import sensitivity_roots

D, BLOCKS = 8, 400


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=13, n_positions=8, n_embd=D, n_layer=2, n_head=2, initializer_range=0.4)
    config.bos_token_id = config.eos_token_id = None
    return GPT2LMHeadModel(config).double().train()  # small divergences drown in the rounding of fp32


@torch.no_grad()
def divergence(model, module, ids, position, v):
    """KL(model ‖ model with v added to a module's output at one position), summed over later positions."""

    def add(_, __, output):
        (output[0] if isinstance(output, tuple) else output)[:, position] += v
        return output

    model.eval()
    before = model(ids).logits.log_softmax(-1)
    hook = module.register_forward_hook(add)
    after = model(ids).logits.log_softmax(-1)
    hook.remove()
    model.train()
    return float((before.exp() * (before - after)).sum())


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("find", [find_mlps, find_attentions])
def test_it_ranks_directions_as_the_divergence_does(model, layer, find):
    module = find(model)[layer]
    ids = torch.randint(13, (1, 6), generator=torch.Generator().manual_seed(1))
    root = sensitivity_roots(model, {layer: module}, ids.expand(BLOCKS, -1))[layer].double()
    assert model.training and (root @ root.T).trace() == pytest.approx(D)
    directions = [*torch.eye(D).double(), torch.ones(D).double() / D**0.5]  # the model's norms are blind to the last
    found = torch.stack([(v @ root).square().sum() for v in directions])
    small = 1e-2
    true = torch.tensor(
        [sum(2 * divergence(model, module, ids, t, small * v) / small**2 for t in range(6)) / 6 for v in directions]
    )
    true = true * D / true[:D].sum()
    assert found.tolist() == pytest.approx(true.tolist(), rel=0.15, abs=0.02)


def test_few_tokens_say_little(model):
    root = sensitivity_roots(model, find_mlps(model), torch.tensor([[3]]))[1]
    assert torch.linalg.matrix_rank(root) == D and (root @ root.T - torch.eye(D)).abs().max() < 1


def test_an_output_that_nothing_depends_on_counts_as_its_norm(model):
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    assert torch.equal(sensitivity_roots(model, find_mlps(model), torch.tensor([[3, 4]]))[0], torch.eye(D))


def test_a_model_of_inference_mode_is_refused(model):
    with torch.inference_mode(), pytest.raises(ValueError, match="made in inference mode"):
        sensitivity_roots(copied := copy.deepcopy(model), find_mlps(copied), torch.tensor([[3, 4]]))
