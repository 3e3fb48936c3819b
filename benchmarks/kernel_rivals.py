"""The rivals of routed MLPs: the dense MLP, and the usual ways to run a mixture of experts.

Each function prepares a call, untimed, and returns the forward pass and the tensors that it made from weights, whose
gradients a backward pass must also compute.

Shapes: n tokens, d model, f neurons, p pathways, m neurons of one pathway, k chosen.
"""

import functools
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slms.kernels.activations import ACTIVATIONS
from slms.kernels.call import Call
from slms.kernels.reference import all_neurons

Forward = Callable[[], Tensor]


def dense_mlp(call: Call, W_out_t: Tensor | None) -> Tensor:
    """The MLP without routing; W_out_t [d, f] is the usual layout of W_out."""
    hidden = all_neurons(call)
    return hidden @ call.W_out if W_out_t is None else F.linear(hidden, W_out_t)


def chosen_pathways(call: Call) -> Tensor:
    """The pathways [n, k] of each token, ascending, as a router's `topk` gives them; all tokens choose k."""
    n, k = len(call.x), int(call.chosen[0].sum())
    assert bool((call.chosen.sum(1) == k).all()), "tokens choose different numbers of pathways"
    return call.chosen.nonzero()[:, 1].view(n, k)


def grouped_mm(call: Call) -> tuple[Forward, list[Tensor]]:
    """Sort pairs by pathway, gather them, apply `torch.nn.functional.grouped_mm` twice, sum by `embedding_bag`."""
    act, pathways = ACTIVATIONS[call.activation], chosen_pathways(call)
    p, (n, k) = call.chosen.shape[1], pathways.shape
    m = call.W_in.shape[0] // p

    def run() -> Tensor:
        pathway, order = pathways.view(-1).sort(stable=True)
        token = order // k
        ends = call.chosen.sum(0).cumsum(0).int()
        rows = call.x[token]
        up = F.grouped_mm(rows, call.W_in.view(p, m, -1).transpose(1, 2), offs=ends)
        if call.b_in is not None:
            up = up + call.b_in.view(p, m)[pathway]
        if call.W_gate is None:
            hidden = act(up)
        else:
            hidden = up * act(F.grouped_mm(rows, call.W_gate.view(p, m, -1).transpose(1, 2), offs=ends))
        hidden = hidden * call.gates[token, pathway].to(hidden.dtype).unsqueeze(1)
        out = F.grouped_mm(hidden, call.W_out.view(p, m, -1), offs=ends)
        return F.embedding_bag(order.argsort().view(n, k), out, mode="sum")

    return run, []


@functools.cache
def scattermoe_runs(device: str) -> bool:
    """Whether ScatterMoE is installed and can run on `device`."""
    return device == "cuda" and importlib.util.find_spec("scattermoe") is not None


def scattermoe(call: Call) -> tuple[Forward, list[Tensor]]:
    """ScatterMoE's two `parallel_linear`s as its MLP and GLUMLP call them (Tan et al., arXiv:2403.08245)."""
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear

    act, pathways = ACTIVATIONS[call.activation], chosen_pathways(call)
    p, k = call.chosen.shape[1], pathways.shape[1]
    W_in, made = call.W_in.view(p, -1, call.x.shape[1]), []
    W_out = call.W_out.view(W_in.shape)
    if call.W_gate is not None:
        W_in = torch.cat([W_in, call.W_gate.view(W_in.shape)], 1).detach().requires_grad_(call.W_gate.requires_grad)
        made = [W_in] if W_in.requires_grad else []
    bias = None if call.b_in is None else call.b_in.view(p, -1)

    def run() -> Tensor:
        routes = flatten_sort_count(pathways, num_experts=p)
        hidden = parallel_linear(call.x, W_in.transpose(1, 2), k, *routes, expert_biases=bias, grouped_out=True)
        if call.W_gate is None:
            hidden = act(hidden)
        else:
            up, gate = hidden.chunk(2, -1)
            hidden = act(gate) * up
        gates = call.gates.gather(1, pathways).to(hidden.dtype)
        return parallel_linear(hidden, W_out, 1, *routes, gates=gates, grouped_in=True)

    return run, made
