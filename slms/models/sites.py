"""Sites: named points inside a language model, read and replaced through PyTorch's own hooks.

    residual.L     [n, d] the residual stream after layer L
    mlp_in.L       [n, d] the input of layer L's MLP, after its norm
    neurons.L      [n, f] the activations of its neurons, at the input of the down-projection, in the dense order
    mlp_out.L      [n, d] the output of the MLP, before the residual is added
    pathway.L.P    [n, d] what pathway P of a routed MLP adds to that output; zero if P was not chosen
    A+B            [n, 2d] the activations of several sites side by side, which a crosscoder reads

Shapes: b blocks, t position, n tokens (b·t), d model, f neurons.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from slms.kernels.reference import neuron_weights
from slms.models.anatomy import family_of, find_mlps
from slms.models.routed_mlp import RoutedMLP
from slms.models.weights import neurons, read_mlp

Replace = Callable[[Tensor, Tensor], Tensor]
_TRANSFORMER_LENS = {
    "residual": "blocks.{}.hook_resid_post",
    "mlp_in": "blocks.{}.ln2.hook_normalized",
    "neurons": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "pathway": "blocks.{}.mlp.pathway.{}",
}


@dataclass(frozen=True)
class Site:
    """One site: its kind, its layer and, for `pathway`, the pathway; or several sites side by side."""

    kind: str
    layer: int
    pathway: int | None = None
    parts: tuple[Site, ...] = ()
    """Of kind `cross`, the sites side by side; `layer` is then the last one's."""

    @property
    def name(self) -> str:
        """The site's name in a configuration."""
        if self.parts:
            return "+".join(part.name for part in self.parts)
        return ".".join(str(part) for part in (self.kind, self.layer, self.pathway) if part is not None)

    @property
    def hook_name(self) -> str:
        """TransformerLens's name of the site; a pathway gets a name in the same style."""
        if self.parts:
            return "+".join(part.hook_name for part in self.parts)
        return _TRANSFORMER_LENS[self.kind].format(self.layer, self.pathway)


def site_names(model: PreTrainedModel) -> list[str]:
    """List every site of a model."""
    names = []
    for layer, mlp in find_mlps(model).items():
        names += [f"{kind}.{layer}" for kind in ("residual", "mlp_in", "neurons", "mlp_out")]
        if isinstance(mlp, RoutedMLP):
            names += [f"pathway.{layer}.{p}" for p in range(mlp.config.n_pathways)]
    return names


def find_site(model: PreTrainedModel, name: str) -> Site:
    """Return the site called `name`.

    Raises:
        ValueError: there is no such site; the message gives the nearest names.
    """
    if "+" in name:
        return _side_by_side(model, [find_site(model, part) for part in name.split("+")])
    names = site_names(model)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        raise ValueError(f"site {name!r} is not in this model; the nearest of its {len(names)} are {', '.join(near)}")
    kind, layer, *pathway = name.split(".")
    return Site(kind, int(layer), int(pathway[0]) if pathway else None)


def _side_by_side(model: PreTrainedModel, parts: list[Site]) -> Site:
    names, widths = [part.name for part in parts], [site_width(model, part) for part in parts]
    if len(set(widths)) > 1:
        raise ValueError(
            f"site {'+'.join(names)!r} has parts of {', '.join(map(str, widths))} dimensions; one is needed"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"site {'+'.join(names)!r} names one site twice")
    return Site("cross", max(part.layer for part in parts), parts=tuple(parts))


def find_pair(model: PreTrainedModel, source: str, target: str | None) -> tuple[Site, Site]:
    """Return the sites where a coder reads and writes; without `target` both are `source`.

    Raises:
        ValueError: there is no such site, or the model computes the target before the source.
    """
    x = find_site(model, source)
    y = x if target is None else find_site(model, target)
    if x != y and (x.parts or y.parts):
        raise ValueError(f"site {source!r} has target {target!r}; a crosscoder reconstructs what it reads")
    if _order(y) < _order(x):
        raise ValueError(f"site {source!r} has target {target!r}, which the model computes before it")
    return x, y


def _order(site: Site) -> tuple[int, int]:
    return site.layer, ("mlp_in", "neurons", "pathway", "mlp_out", "residual", "cross").index(site.kind)


def site_width(model: PreTrainedModel, site: Site) -> int:
    """Return the dimension of a site's activations."""
    if site.parts:
        return sum(site_width(model, part) for part in site.parts)
    weights = read_mlp(find_mlps(model)[site.layer])
    return weights.W_in.shape[0 if site.kind == "neurons" else 1]


def site_of_hook(model: PreTrainedModel, hook_name: str) -> Site:
    """Return the site that TransformerLens calls `hook_name`.

    Raises:
        ValueError: this model has no such site; the message gives the nearest names.
    """
    if "+" in hook_name:
        return _side_by_side(model, [site_of_hook(model, part) for part in hook_name.split("+")])
    names = {site.hook_name: site for site in (find_site(model, name) for name in site_names(model))}
    if hook_name not in names:
        near = difflib.get_close_matches(hook_name, names, n=3, cutoff=0.0)
        raise ValueError(f"hook {hook_name!r} is no site of this model; the nearest are {', '.join(near)}")
    return names[hook_name]


def hf_name(model: PreTrainedModel, site: Site) -> str:
    """Return the path of the module whose output (for `mlp_in` and `neurons`, input) is the site."""
    if site.parts:
        return "+".join(hf_name(model, part) for part in site.parts)
    family = family_of(model)
    layer = f"{family.layers}.{site.layer}"
    down = "" if isinstance(find_mlps(model)[site.layer], RoutedMLP) else f".{family.down}"
    return layer + {"residual": "", "neurons": f".{family.mlp}{down}"}.get(site.kind, f".{family.mlp}")


def _attach(model: PreTrainedModel, site: Site, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `see` with the site's activations [..., d] at each forward; its result, if any, replaces them."""
    family = family_of(model)
    layer = model.get_submodule(f"{family.layers}.{site.layer}")
    mlp = getattr(layer, family.mlp)

    def on_input(_: nn.Module, inputs: tuple):
        new = see(inputs[0])
        return None if new is None else (new, *inputs[1:])

    def on_output(_: nn.Module, inputs: tuple, output):
        new = see(output[0] if isinstance(output, tuple) else output)
        return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

    def on_part(module: RoutedMLP, inputs: tuple, output: Tensor):
        weights, kept = _routed_part(module, inputs[0], site.pathway)
        new = see(kept if site.pathway is None else kept @ weights)
        if new is None:
            return None
        delta = (new - kept) @ weights if site.pathway is None else new - kept @ weights
        return output + delta.to(output.dtype)

    match site.kind:
        case "residual":
            return layer.register_forward_hook(on_output)
        case "mlp_out":
            return mlp.register_forward_hook(on_output)
        case "mlp_in":
            return mlp.register_forward_pre_hook(on_input)
        case "neurons" if not isinstance(mlp, RoutedMLP):
            return getattr(mlp, family.down).register_forward_pre_hook(on_input)
        case _:
            return mlp.register_forward_hook(on_part)


def _routed_part(mlp: RoutedMLP, x: Tensor, pathway: int | None) -> tuple[Tensor, Tensor]:
    """Return W_out [f, d] and the gated activations [..., f] of all neurons or one pathway's, in dense order."""
    flat = rearrange(x, "... d -> (...) d")
    routes = mlp.router.route(flat, mlp.k)
    order = mlp.permutation.argsort()
    weights = read_mlp(mlp)
    gated = neurons(weights, flat) * neuron_weights(routes.gates, routes.chosen, mlp.offsets)[:, order].to(x.dtype)
    if pathway is not None:
        mine = mlp.permutation[mlp.offsets[pathway] : mlp.offsets[pathway + 1]]
        return weights.W_out[mine], gated[:, mine].view(*x.shape[:-1], -1)
    return weights.W_out, gated.view(*x.shape[:-1], -1)


class _Enough(Exception):
    """Raised once every site has been read, since the rest of the forward pass is not needed."""


@torch.no_grad()
def read_sites(model: PreTrainedModel, input_ids: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Return activations {name: [n, d]} for token blocks [b, t]; the model runs no further than the last site."""
    found: dict[str, Tensor] = {}
    single = list(dict.fromkeys(part for site in sites for part in site.parts or (site,)))

    def reader(site: Site) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:
            found[site.name] = rearrange(x.detach(), "b t d -> (b t) d").clone()  # later layers may write in place
            if len(found) == len(single):
                raise _Enough

        return see

    with ExitStack() as stack:
        for site in single:
            stack.callback(_attach(model, site, reader(site)).remove)
        with suppress(_Enough):
            model(input_ids, use_cache=False)
    for site in sites:
        if site.parts:
            found[site.name] = torch.cat([found[part.name] for part in site.parts], dim=1)
    return {site.name: found[site.name] for site in sites}


@contextmanager
def replaced(model: PreTrainedModel, source: Site, target: Site, by: Replace) -> Iterator[None]:
    """While open, replace activations y [n, o] at `target` by by(x, y), where x [n, i] are those at `source`."""
    seen: dict[str, Tensor] = {}

    def note(x: Tensor) -> None:
        seen["x"] = x

    def swap(y: Tensor) -> Tensor:
        x = y if source == target else seen["x"]
        new = by(rearrange(x, "b t d -> (b t) d"), rearrange(y, "b t d -> (b t) d"))
        return new.view(y.shape).to(y.dtype)

    with ExitStack() as stack:
        if source != target:
            stack.callback(_attach(model, source, note).remove)
        stack.callback(_attach(model, target, swap).remove)
        yield
