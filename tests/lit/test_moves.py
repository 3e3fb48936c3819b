"""Neurons that move between pathways while a run trains: they end where they belong, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F

from slms.lit.language_model import LanguageModel
from slms.lit.moves import AssignmentConfig, Gains, Moves, check_assignment
from slms.models.base import BaseConfig
from slms.models.routed import record_routes
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig

TOPICS = 4


def planted(sizes=(5, 5, 5, 5), seed=0, **fields) -> tuple[RoutedMLP, torch.Tensor]:
    """An MLP whose neurons read one topic each, in wrong pathways, and whose router chooses the topic's pathway.

    Returns it and the topic of each neuron in the base's order.
    """
    generator = torch.Generator().manual_seed(seed)
    f, p = sum(sizes), len(sizes)
    topic = torch.arange(p).repeat_interleave(torch.tensor(sizes))
    config = RoutingConfig(**{"n_pathways": p, "k": 1, "router": "linear", "gate": "unit", **fields})
    mlp = RoutedMLP(p, f, config, activation="relu", layer_index=0, bias_in=False, bias_out=False)
    W_in = F.one_hot(topic, p) * (1 + torch.rand(f, 1, generator=generator))
    W_out = torch.randn(f, p, generator=generator)
    mlp.load_dense(W_in, W_out, permutation=torch.randperm(f, generator=generator))
    with torch.no_grad():
        mlp.router.out.weight.copy_(torch.eye(p))
        mlp.router.out.bias.zero_()
    return mlp, topic


def tokens(n=64, seed=0, topics=TOPICS):
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(topics)[torch.randint(0, topics, (n,), generator=generator)] + 0.05 * torch.rand(
        n, topics, generator=generator
    )


class Net(torch.nn.Module):
    def __init__(self, mlp: RoutedMLP) -> None:
        super().__init__()
        self.mlp = mlp


def train(mlp: RoutedMLP, moves: Moves, steps: int, lr: float) -> float:
    """Learn the dense output by Adam; the last step's error."""
    net, dense = Net(mlp), mlp.dense_weights()
    optimizer = torch.optim.AdamW([mlp.W_in, mlp.W_out], lr=lr, weight_decay=0.0)
    for step in range(steps):
        x = tokens(seed=step, topics=mlp.W_in.shape[1])
        with record_routes(net) as routes:
            error = (mlp(x) - (x @ dense.W_in.T).relu() @ dense.W_out).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        if moves:
            moves.count(net, routes, {0: x})
            moves.step(net, optimizer, step, steps)
    return error.item()


def moving(mlp: RoutedMLP, **fields) -> Moves:
    moves = Moves()
    moves.follow(Net(mlp), AssignmentConfig(**{"every": 4, "until": 1.0, "momentum": 0.5, **fields}))
    return moves


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5), (4, 4, 3, 3)])
def test_training_moves_neurons_from_wrong_pathways_to_where_their_tokens_go(sizes):
    mlp, topic = planted(sizes)
    assert not torch.equal(mlp.pathway_of_neuron(), topic)
    stayed = train(planted(sizes)[0], Moves(), 12, 1e-3)
    moves = moving(mlp)
    error = train(mlp, moves, 12, 1e-3)
    assert torch.equal(mlp.pathway_of_neuron(), topic)
    assert error < 0.05 * stayed
    assert moves.shares(Net(mlp))["L0.mlp"] > 0.4
    assert moves.shares(Net(mlp))["L0.mlp"] == 0


def test_gains_are_those_of_the_definition():
    mlp, _ = planted((3, 3, 2, 2), mean_compensation=True)
    gains, total, mean, n = Gains(10, 4), torch.zeros(10, 4), torch.zeros(10), 0
    for step in range(2):
        before = mean / max(1 - 0.9**step, 1e-12)
        summed, acts_sum = torch.zeros(10, 4), torch.zeros(10)
        for part in range(2):  # two micro-batches, every fourth token of each
            x = tokens(40, seed=10 * step + part)
            chosen = torch.rand(40, 4, generator=torch.Generator().manual_seed(step)) < 0.5
            gains.count(mlp, x, chosen)
            for t in range(0, 40, 4):
                acts = torch.stack([(x[t] @ mlp.W_in[i]).relu() for i in range(10)]).detach()
                wrote = torch.stack([(acts[i] - before[i]) * mlp.W_out[i].norm() for i in range(10)]).detach()
                shares = wrote.square() / wrote.square().sum()
                summed += shares[:, None] * chosen[t]
                acts_sum += acts
        gains.fold(0.9)
        total, mean = 0.9 * total + 0.1 * summed / 20, 0.9 * mean + 0.1 * acts_sum / 20
        n += 20
    torch.testing.assert_close(gains.gain, total)
    torch.testing.assert_close(gains.mean_activation(), mean / (1 - 0.9**2))


@pytest.mark.parametrize("gated", [False, True])
def test_the_function_of_every_pathway_does_not_change_whatever_moves_nor_does_its_training(gated):
    """With k = P and Adam, a run whose neurons move at random each step is the run in which they stay."""

    def run(moved: bool):
        torch.manual_seed(0)
        config = RoutingConfig(n_pathways=4, k=4, router="linear", gate="unit")
        mlp = RoutedMLP(6, 22, config, activation="silu", layer_index=0, gated=gated)
        optimizer = torch.optim.AdamW(mlp.parameters(), lr=1e-2)
        gains, generator = Gains(22, 4), torch.Generator().manual_seed(1)
        target = torch.randn(30, 6)
        x, changed = torch.randn(30, 6), 0
        for _ in range(6):
            optimizer.zero_grad()
            (mlp(x) - target).square().mean().backward()
            optimizer.step()
            if moved:
                before = mlp(x).detach()
                gains.gain.copy_(torch.rand(22, 4, generator=generator))
                gains.reassign(mlp, optimizer, 0.0)
                torch.testing.assert_close(mlp(x), before)
                changed += int(gains.moved)
                assert mlp.pathway_of_neuron().bincount().tolist() == [6, 6, 5, 5]
        assert changed > 30 or not moved
        return mlp.dense_weights()

    for stayed, moved in zip(run(False), run(True), strict=True):
        assert (stayed is None) == (moved is None)
        if isinstance(stayed, torch.Tensor):
            torch.testing.assert_close(moved, stayed)


def test_skipped_means_change_sides_with_their_neurons_and_shared_pathways_keep_theirs():
    mlp, _ = planted((3, 3, 3, 3), n_shared=1, k=2, mean_compensation=True)
    gains, optimizer = Gains(12, 4), torch.optim.SGD(mlp.parameters(), lr=0.1)
    gains.mean.copy_(torch.rand(12))
    gains.weight.fill_(0.5)
    gains.gain.copy_(torch.rand(12, 4))
    mean = gains.mean_activation()
    mlp.mean_out.copy_(torch.stack([mean[q * 3 : q * 3 + 3] @ mlp.W_out[q * 3 : q * 3 + 3] for q in range(4)]).detach())
    shared = mlp.permutation[:3].clone()
    gains.reassign(mlp, optimizer, 0.0)
    assert gains.moved > 0 and mlp.permutation[:3].equal(shared.sort().values)
    mean = gains.mean_activation()  # of the rows as they lie now
    for q in range(4):
        rows = slice(q * 3, q * 3 + 3)
        torch.testing.assert_close(mlp.mean_out[q], (mean[rows] @ mlp.W_out[rows]).detach())


def test_gains_that_are_not_finite_are_refused_with_their_place():
    mlp, _ = planted()
    moves, optimizer = moving(mlp, every=1), torch.optim.SGD(mlp.parameters(), lr=0.1)
    x = tokens()
    x[0, 0] = torch.inf
    with record_routes(Net(mlp)) as routes:
        mlp(tokens())
    moves.count(Net(mlp), routes, {0: x})
    with pytest.raises(ValueError, match=r"L0\.mlp: what its neurons contribute is NaN or infinite"):
        moves.step(Net(mlp), optimizer, 0, 4)


def test_gains_follow_a_model_to_bfloat16():
    mlp, topic = planted()
    moves = moving(mlp.to(torch.bfloat16)).to(torch.bfloat16)
    x, optimizer = tokens().to(torch.bfloat16), torch.optim.SGD(mlp.parameters(), lr=0.1)
    for step in range(4):
        with record_routes(Net(mlp)) as routes:
            mlp(x)
        moves.count(Net(mlp), routes, {0: x})
        moves.step(Net(mlp), optimizer, step, 4)
    assert torch.equal(mlp.pathway_of_neuron(), topic)


def test_a_neuron_stays_unless_it_gains_enough():
    for least, stays in ((0.0, False), (0.3, True)):
        mlp, _ = planted((2, 2), k=1)
        gains, table = Gains(4, 2).double(), torch.tensor([[1.0, 1.2], [1.0, 0.2], [1.2, 1.0], [0.2, 1.0]]).double()
        gains.gain.copy_(table)
        gains.reassign(mlp, torch.optim.SGD(mlp.parameters(), lr=0.1), least)
        assert int(gains.moved) == (0 if stays else 2)
        assert gains.gain.sort(0).values.equal(table.sort(0).values)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"router": "gate", "n_pathways": 16}, r"model.routing.router gate; it needs a router that learns"),
        ({"gate": "ramp"}, r"model.routing.gate ramp; it must be unit"),
        ({"stock": True}, r"model.routing.gate softmax; it must be unit"),
        ({"rule": "relu"}, r"model.routing.gate relu; it must be unit"),
        ({"k": 16}, r"model.routing.k 16, every pathway"),
        ({"target": "attention", "k_heads": 2}, r"model.routing.target attention; it moves neurons of MLPs"),
        ({"n_pathways": 256}, r"model.routing has 256 pathways to choose from; it must be 2 to 192"),
    ],
)
def test_what_has_nothing_to_move_is_refused(fields, words):
    unit = {"gate": "unit"} if not fields.keys() & {"gate", "stock", "rule", "target"} else {}
    with pytest.raises(ValueError, match=words):
        check_assignment(RoutingConfig(**{**unit, **fields}))


def test_a_dense_run_and_single_neurons_are_refused_and_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"model.assignment is given and model.routing null"):
        LanguageModel(BaseConfig(name="stories-1m"), assignment=AssignmentConfig())
    mlp, _ = planted((1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"model.routing.n_pathways 4; pathways of single neurons cannot"):
        moving(mlp)
    for name, value in (("every", 0), ("until", 0.0), ("until", 1.1), ("momentum", 1.0), ("least", -0.1)):
        with pytest.raises(ValueError, match=rf"model.assignment.{name} is {value}"):
            AssignmentConfig(**{name: value})
