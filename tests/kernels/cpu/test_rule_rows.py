"""The compiled MLPs of rules against their definition, one neuron and one input at a time."""

import pytest
import torch
import torch.nn.functional as F

from slms.kernels.cpu.rule_rows import KINDS, Choice, RuleCall, RuleMLP, fits

D, F_, Q = 40, 100, 5


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept(v, choice):
    """The numbers that are kept, found one after another."""
    scores = v.abs() * choice.scale
    if choice.most is None:
        return torch.tensor([not bool(s < choice.least) for s in scores])
    order = sorted(range(len(v)), key=lambda i: (not scores[i].isnan(), -scores[i].item(), i))
    return torch.tensor([i in order[: choice.most] for i in range(len(v))])


def defined(call, x):
    """The output [d] of one token x [d]."""
    act = F.silu if call.activation == "silu" else F.relu

    def linear(W, b, v, keep):
        return sum(v[i] * W[:, i] for i in range(len(v)) if keep[i]) + (0 if b is None else b)

    W_in, W_gate = call.W_in, call.W_gate
    everything = torch.ones(len(x), dtype=torch.bool)
    by_gate = by_up = everything
    if call.by == "inputs":
        x = x - call.x_mean
        W_in, W_gate = W_in.T, None if W_gate is None else W_gate.T
        by_up, by_gate = kept(x, call.up), None if W_gate is None else kept(x, call.gate)
    u = linear(W_in, call.b_in, x, by_up)
    gate = None if W_gate is None else act(linear(W_gate, call.b_gate, x, by_gate))
    h = act(u) if gate is None else gate * u
    scored = h - call.mean
    if call.by == "gate":
        scored = gate
    elif call.by == "prediction":
        predicted = call.wide @ (call.narrow @ x) + call.shift
        scored = act(predicted[F_:]) * predicted[:F_] if gate is not None else act(predicted)
        scored = scored - call.mean
    return linear(call.W_out.T, call.b_out, h - call.mean, kept(scored, call.down))


def make(by, gated, biased, down):
    shape = (D, F_) if by == "inputs" else (F_, D)
    return RuleCall(
        by=by,
        activation="silu" if gated else "relu",
        W_gate=draw(*shape, seed=1) if gated else None,
        b_gate=draw(F_, seed=2) if gated and biased else None,
        W_in=draw(*shape, seed=3),
        b_in=draw(F_, seed=4) if biased else None,
        W_out=draw(F_, D, seed=5),
        b_out=draw(D, seed=6) if biased else None,
        mean=draw(F_, seed=7) if biased else torch.zeros(F_),
        down=down,
        gate=Choice(draw(D, seed=8).abs(), 17),
        up=Choice(torch.ones(D), least=0.7),
        x_mean=draw(D, seed=9),
        narrow=draw(Q, D, seed=10),
        wide=draw(F_ * (1 + gated), Q, seed=11),
        shift=draw(F_ * (1 + gated), seed=12),
    )


CHOICES = {
    "most": Choice(draw(F_, seed=13).abs(), 31),
    "least": Choice(torch.ones(F_), least=0.8),
    "all": Choice(torch.ones(F_), least=float("-inf")),
    "none": Choice(torch.ones(F_), 0),
    "nearly all": Choice(torch.ones(F_), F_ - 1),
}


@pytest.mark.parametrize("down", CHOICES)
@pytest.mark.parametrize("gated, biased", [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("by", KINDS)
def test_outputs_are_the_definition(by, gated, biased, down):
    if by == "gate" and not gated:
        return
    call, x = make(by, gated, biased, CHOICES[down]), draw(3, D, seed=14)
    assert fits(call)
    wanted = torch.stack([defined(call, token) + torch.zeros(D) for token in x])
    torch.testing.assert_close(RuleMLP(call)(x), wanted, rtol=1e-4, atol=1e-3)


def test_of_equal_scores_the_first_are_kept():
    """Two neurons in four alike: the set is the first ones of equal score, as many as asked for."""
    call = make("output", True, False, Choice(torch.ones(F_), 10))
    same = {name: getattr(call, name)[:1].expand(F_, D).contiguous() for name in ("W_gate", "W_in")}
    call = call._replace(**same)
    x = draw(1, D, seed=14)
    h = F.silu(x @ call.W_gate.T) * (x @ call.W_in.T)
    torch.testing.assert_close(RuleMLP(call)(x), h[:, :10] @ call.W_out[:10], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("down", ["most", "least"])
def test_nan_reaches_the_output(by, down):
    x = draw(1, D, seed=14)
    x[0, 3] = torch.nan
    assert RuleMLP(make(by, True, False, CHOICES[down]))(x).isnan().all()


@pytest.mark.parametrize("by", ["output", "gate", "prediction", "inputs"])
def test_what_is_not_chosen_is_not_read(by):
    """NaN in every row that no token chose changes nothing."""
    call = make(by, True, False, Choice(torch.ones(F_), 20))
    x = draw(1, D, seed=14)
    before = RuleMLP(call)(x)
    probe = call._replace(W_out=torch.eye(F_, D).add(1.0))
    used = torch.zeros(F_, dtype=torch.bool)
    for i in range(F_):  # a row is used if changing it changes the output
        changed = probe.W_out.clone()
        changed[i] += 1
        used[i] = not torch.equal(RuleMLP(probe._replace(W_out=changed))(x), RuleMLP(probe)(x))
    assert used.sum() == 20
    poisoned = call.W_out.clone()
    poisoned[~used] = torch.nan
    changes = {"W_out": poisoned}
    if by in ("gate", "prediction"):
        changes["W_in"] = call.W_in.clone()
        changes["W_in"][~used] = torch.nan
    assert torch.equal(RuleMLP(call._replace(**changes))(x), before)


def test_what_the_loops_do_not_know_does_not_fit():
    call = make("output", True, True, CHOICES["most"])
    assert fits(call)
    assert not fits(call._replace(activation="mish"))
    assert not fits(call._replace(W_out=call.W_out.double()))
    assert not fits(call._replace(W_in=call.W_in.T.contiguous().T))
    assert not fits(call._replace(down=Choice(torch.ones(F_, dtype=torch.bfloat16), 3)))
