"""The routed MLP, which groups a dense MLP's neurons into pathways; each token executes those its router chooses.

Shapes: b batch, t position, n tokens (b·t), d model, f neurons, p pathways.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from slms.kernels import Call, GateCall, gate_mlp, gate_mlp_counted, routed_mlp
from slms.kernels.activations import ACTIVATIONS
from slms.kernels.backends import refusal
from slms.kernels.gate_reference import keep_reference, unit_scores
from slms.kernels.reference import neuron_weights
from slms.models.fused_mlp import fused_backend, fused_gate, fused_router
from slms.models.partition import pathway_offsets
from slms.models.routed import Routed, routed_modules
from slms.models.weights import MLPWeights
from slms.routing import RULES, Follower, GateSelector, Group, PathwayRouter, Routes, RoutingConfig

SCREENED = 0.45
"""Below this density a copy in eight bits spares reading the gate matrix: at .3 a token is 5 % faster, at .6 slower."""


class RoutedMLP(Routed):
    """y = b_out + Σ_{p chosen} g_p · h_p W_out_p [+ Σ_{p not chosen} mean_out_p],  h = act(x W_inᵀ + b_in).

    In gated MLPs h = act(x W_gateᵀ + b_gate) ∘ (x W_inᵀ + b_in). All matrices, also W_out, are [f, d], so that a neuron
    is one contiguous row of each; pathway p is rows offsets[p] to offsets[p + 1]. ``permutation`` [f] holds the dense
    model's index of every row. With every pathway chosen and gates of 1 this equals the dense MLP. The first that is
    made with a ``group`` leads it: the router of this one chooses for all.
    """

    part = "mlp"
    units = "neurons"
    router: PathwayRouter | Follower | GateSelector
    permutation: Tensor
    mean_out: Tensor | None

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        config: RoutingConfig,
        *,
        activation: str,
        layer_index: int,
        gated: bool = False,
        bias_in: bool = True,
        bias_out: bool = True,
        dropout: float = 0.0,
        group: Group | None = None,
    ) -> None:
        super().__init__(layer_index, pathway_offsets(d_ff, config.n_pathways), config.k)
        self.activation, self.dropout = activation, dropout
        self.W_in = nn.Parameter(torch.empty(d_ff, d_model))
        self.W_out = nn.Parameter(torch.empty(d_ff, d_model))
        self.W_gate = nn.Parameter(torch.empty(d_ff, d_model)) if gated else None
        self.b_in = nn.Parameter(torch.zeros(d_ff)) if bias_in else None
        self.b_gate = nn.Parameter(torch.zeros(d_ff)) if gated and bias_in else None
        self.b_out = nn.Parameter(torch.zeros(d_model)) if bias_out else None
        for weight in (self.W_in, self.W_out, self.W_gate):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)
        self.register_buffer("permutation", torch.arange(d_ff))
        self.register_buffer("mean_out", torch.zeros(config.n_pathways, d_model) if config.mean_compensation else None)
        if config.router == "gate" and not gated:
            raise ValueError("`routing.router` is gate; the MLPs have no gate, so it must be mlp or linear.")
        if config.k_out is not None and config.n_pathways != d_ff:
            raise ValueError(
                f"`routing.k_out` is {config.k_out}; it needs single neurons, `routing.n_pathways` {d_ff}, not "
                f"{config.n_pathways}."
            )
        if config.router == "gate":
            self.router = GateSelector(self.offsets, config)
        elif group is not None and group.place:
            self.router = Follower(group, self.place)
        else:
            self.router = PathwayRouter(d_model, config)
            if group is not None:
                group.lead(self.router, self.place)
        self._prepared: tuple | None = None
        self._screens = False
        self.register_state_dict_post_hook(_contiguous)

    @torch.no_grad()
    def load_dense(
        self,
        W_in: Tensor,
        W_out: Tensor,
        *,
        permutation: Tensor,
        W_gate: Tensor | None = None,
        b_in: Tensor | None = None,
        b_gate: Tensor | None = None,
        b_out: Tensor | None = None,
    ) -> None:
        """Copy a dense MLP's neuron-major weights ([f, d], biases [f], b_out [d]) in the order of ``permutation``."""
        dense = {"W_in": W_in, "W_out": W_out, "W_gate": W_gate, "b_in": b_in, "b_gate": b_gate, "b_out": b_out}
        for name, source in dense.items():
            target = getattr(self, name)
            assert (target is None) == (source is None), (name, target is None, source is None)
            if target is not None and source is not None:
                target.copy_(source if name == "b_out" else source[permutation.to(source.device)])
        self.permutation.copy_(permutation)

    def interleave(self) -> None:
        """Let what decoding reads of a neuron at once lie side by side, in place, and let it screen the gates.

        That is W_gate and W_in if thresholds choose few, else W_in and W_out, unless `k_out` reads fewer rows of W_out.
        Parameters stay the same objects with the same numbers, and state dictionaries hold contiguous copies. Nothing
        happens unless `router` is gate, in float32 on the CPU.
        """
        kind = self.W_in.dtype
        if not isinstance(self.router, GateSelector) or self.W_gate is None or kind != torch.float32:
            return
        if refusal("rows", self.W_in.device.type, kind) is not None:
            return
        from slms.kernels.cpu.gate_rows import interleave, interleaved  # numba takes half a second to import

        by_threshold = self.router.by_threshold(self._k) and self.config.n_pathways == len(self.W_in)
        self._screens = by_threshold and not self.W_gate.is_inference()  # which has no version
        if self.config.k_out is not None and self.screened is None:
            return
        pair = (self.W_in, self.W_out) if self.screened is None else (self.W_gate, self.W_in)
        if not interleaved(*pair):
            with torch.inference_mode(self.W_in.is_inference()):  # they stay of their kind, and can be trained
                pair[0].data, pair[1].data = interleave(*pair)

    @property
    def screened(self) -> int | None:
        """The version of the gate matrix of which decoding may use a copy in eight bits; None for no copy."""
        few = self._screens and self._k < SCREENED * self.config.n_pathways
        return self.W_gate._version if few and self.W_gate is not None else None

    def pathway_of_neuron(self) -> Tensor:
        """Return the pathway of each neuron, int64 [f] on the CPU, in the dense model's order."""
        sizes = torch.tensor(self.offsets).diff()
        return torch.arange(len(sizes)).repeat_interleave(sizes)[self.permutation.argsort().cpu()]

    @torch.no_grad()
    def regroup(self, pathway: Tensor, mean: Tensor | None = None) -> Tensor:
        """Put the neurons into other pathways, in place; with every pathway chosen the MLP computes what it did.

        pathway [f] is the new pathway of each row, with as many rows each as before. mean [f] are the neurons' mean
        activations, whose outputs change sides in the stored means of skipped pathways; needed if there are such means.
        Returns the old row of each new row, int64 [f]: what belongs to rows, as an optimizer's moments, must follow.
        """
        sizes = torch.tensor(self.offsets, device=pathway.device).diff()
        found = pathway.bincount(minlength=len(sizes))
        assert found.equal(sizes), (found.tolist(), sizes.tolist())
        if self.mean_out is not None:
            assert mean is not None
            before = F.one_hot(torch.arange(len(sizes), device=pathway.device).repeat_interleave(sizes), len(sizes))
            crossed = (F.one_hot(pathway, len(sizes)) - before).to(mean)
            self.mean_out += (crossed * mean[:, None]).T.to(self.mean_out) @ self.W_out.to(self.mean_out)
        order = (pathway * len(pathway) + self.permutation.to(pathway)).argsort()  # by pathway, then as in the base
        for rows in (self.W_in, self.W_out, self.W_gate, self.b_in, self.b_gate, self.permutation):
            if rows is not None:
                rows.copy_(rows[order.to(rows.device)])
        return order

    def dense_weights(self) -> MLPWeights:
        """Return copies of the weights in the dense model's order of neurons, which inverts :meth:`load_dense`."""
        order = self.permutation.argsort()
        rows = {name: getattr(self, name) for name in ("W_in", "W_out", "b_in", "W_gate", "b_gate")}
        rows = {name: None if w is None else w.detach()[order] for name, w in rows.items()}
        return MLPWeights(**rows, b_out=None if self.b_out is None else self.b_out.detach(), activation=self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [..., d] for x [..., d], in x's dtype."""
        flat = x.reshape(-1, x.shape[-1])
        if isinstance(self.router, GateSelector):
            if (gated := fused_gate(self, flat)) is not None:
                y = gated(flat)
                return (y if self.b_out is None else y + self.b_out).reshape(x.shape)
            y = self._by_gate(flat, self.router)
            return F.dropout(y.to(x.dtype), self.dropout, self.training).reshape(x.shape)
        if (backend := fused_backend(self, flat)) is not None and (run := fused_router(self, flat.dtype)) is not None:
            return run(flat, backend).reshape(x.shape)
        routes = self.routes(flat)
        if self.recorder is not None:
            self.recorder(routes)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype

        rule = RULES[self.config.rule]
        most = self._k if rule.fixed else None
        weights = (self.W_in, self.b_in, self.W_gate, self.b_gate, self.W_out)
        cast = [None if tensor is None else tensor.to(dtype) for tensor in (flat, *weights, routes.gates)]
        y = routed_mlp(
            Call._make([*cast, routes.chosen, self.offsets, self.activation, most]),
            self.config.backend,
            self._k / self.config.n_pathways if rule.fixed or rule.held else None,
        )
        if self.mean_out is not None:
            y = y + einsum((~routes.chosen).to(dtype), self.mean_out.to(dtype), "n p, p d -> n d")
        if self.b_out is not None:
            y = y + self.b_out.to(dtype)
        return F.dropout(y.to(x.dtype), self.dropout, self.training).reshape(x.shape)

    def weigh(self, h: Tensor, routes: Routes) -> Tensor:
        """What goes through W_out of neurons h [n, f]: times the gates of their pathways, 0 where they do not run."""
        return h * self._weights(h, routes)

    def _weights(self, h: Tensor, routes: Routes) -> Tensor:
        weights = neuron_weights(routes.gates, routes.chosen, self.offsets)
        if self.k_out is not None:
            assert isinstance(self.router, GateSelector)
            call = self.gate_call(h, self.router)
            if self.router.chooser is not None:  # of another choice fewer activations reach a threshold
                call = call._replace(least=None, least_out=None)
            weights = keep_reference(h, weights > 0, call)
        return weights.to(h.dtype)

    def weigh_dense(self, h: Tensor, routes: Routes) -> Tensor:
        """The same of neurons in the dense model's order."""
        return self.weigh(h[:, self.permutation], routes)[:, self.permutation.argsort()]

    def routes(self, x: Tensor) -> Routes:
        """Return the routes of inputs x [n, d]."""
        if isinstance(self.router, GateSelector):
            return self.router.route(x, self._k, self._gates(x))
        return super().routes(x)

    def _gates(self, x: Tensor) -> Tensor:
        assert self.W_gate is not None
        return ACTIVATIONS[self.activation](F.linear(x, self.W_gate, self.b_gate))

    @torch.no_grad()
    def set_least(self, x: Tensor) -> None:
        """Set the thresholds of its own gates such that inputs x [n, d] choose k pathways on average."""
        selector, gates = self.router, self._gates(x)
        assert isinstance(selector, GateSelector)
        h = gates * F.linear(x, self.W_in, self.b_in)
        worth = None if selector.out_scale is None else h.abs().float() * selector.out_scale
        selector.set_least(unit_scores(gates, selector.scale, self.offsets), worth, self._k)

    def _by_gate(self, x: Tensor, selector: GateSelector) -> Tensor:
        """Return the output [n, d] for x [n, d] if the gate chooses; what is observed is computed whole and masked."""
        if self.recorder is not None or selector.chooser is not None:
            gates = self._gates(x)
            routes = selector.route(x, self._k, gates)
            h = gates * F.linear(x, self.W_in, self.b_in)
            weights = self._weights(h, routes)
            if self.recorder is not None:
                through = None if self.k_out is None else weights.sum(1, dtype=torch.int64)
                self.recorder(routes._replace(through=through))
            y = (h * weights) @ self.W_out
        elif self.training and selector.by_threshold(self._k):  # the budget needs to know what was chosen
            y, counts = gate_mlp_counted(self.gate_call(x, selector))
            selector.count(counts)
        else:
            # Whether any token can be whole is not asked, for which a GPU would wait and CUDA graphs could not hold it.
            y = gate_mlp(self.gate_call(x, selector))
        return y if self.b_out is None else y + self.b_out

    def gate_call(self, x: Tensor, selector: GateSelector) -> GateCall:
        """The inputs of the kernels for x [n, d]."""
        assert self.W_gate is not None
        weights = (self.W_in, self.b_in, self.W_gate, self.b_gate, self.W_out)
        units = (selector.scale.float(), self.offsets, self._k, self.config.n_shared)
        k_out = self.k_out
        out_scale = None if k_out is None or selector.out_scale is None else selector.out_scale.float()
        least = [None if t is None else t.float() for t in (selector.least, selector.least_out)]
        held = least if selector.by_threshold(self._k) else [None, None]
        return GateCall(x, *weights, *units, self.activation, selector.whole_above.float(), k_out, out_scale, *held)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_prepared": None}

    def extra_repr(self) -> str:
        f, d = self.W_in.shape
        return f"{self.place}, d={d}, f={f}, pathways={self.config.n_pathways}, k={self._k}, {self.activation}"


def check_only_mlps(model: nn.Module, what: str) -> None:
    """Raise ValueError, naming `what` cannot be done, if something else than MLPs is routed in a model."""
    for place, module in routed_modules(model).items():
        if not isinstance(module, RoutedMLP):
            raise ValueError(f"{what}: it varies MLPs only, and the {module.units} of {place} are routed")


def _contiguous(mlp: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict) -> None:
    """Replace interleaved weights in a state dictionary by copies, since files hold whole tensors."""
    for name in ("W_in", "W_out", "W_gate"):
        if isinstance(weight := state.get(prefix + name), Tensor):
            state[prefix + name] = weight.contiguous()
