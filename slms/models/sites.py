"""Sites: named points inside a language model, read and replaced through PyTorch's own hooks.

    residual.L     [n, d] the residual stream after layer L
    mlp_in.L       [n, d] the input of layer L's MLP, after its norm
    neurons.L      [n, f] the activations of its neurons, at the input of the down-projection, in the dense order
    mlp_out.L      [n, d] the output of the MLP, before the residual is added
    pathway.L.P    [n, d] what pathway P of a routed MLP adds to that output; zero if P was not chosen
    A+B            [n, 2d] the activations of several sites side by side, which a crosscoder reads
    base:A+routed:A  the same of two models that read the same tokens (`slms.models.pair`)

Shapes: b blocks, t position, n tokens (b·t), d model, f neurons.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from slms.models.anatomy import family_of, find_mlps
from slms.models.pair import Models, Pair, models_of
from slms.models.resumed import Enough
from slms.models.routed_mlp import RoutedMLP
from slms.models.site_hooks import attach
from slms.models.weights import read_mlp

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
    of: str = ""
    """The name of its model, if two are read."""

    @property
    def owner(self) -> str:
        """The prefix of its names, which says whose site it is."""
        return f"{self.of}:" if self.of else ""

    @property
    def name(self) -> str:
        """The site's name in a configuration."""
        if self.parts:
            return "+".join(part.name for part in self.parts)
        return self.owner + ".".join(str(part) for part in (self.kind, self.layer, self.pathway) if part is not None)

    @property
    def hook_name(self) -> str:
        """TransformerLens's name of the site; a pathway gets a name in the same style."""
        if self.parts:
            return "+".join(part.hook_name for part in self.parts)
        return self.owner + _TRANSFORMER_LENS[self.kind].format(self.layer, self.pathway)


def site_names(model: PreTrainedModel) -> list[str]:
    """List every site of a model."""
    names = []
    for layer, mlp in find_mlps(model).items():
        names += [f"{kind}.{layer}" for kind in ("residual", "mlp_in", "neurons", "mlp_out")]
        if isinstance(mlp, RoutedMLP):
            names += [f"pathway.{layer}.{p}" for p in range(mlp.config.n_pathways)]
    return names


def find_site(model: Models, name: str) -> Site:
    """Return the site called `name`; of two models it is read in both, unless its parts say whose they are.

    Raises:
        ValueError: there is no such site; the message gives the nearest names.
    """
    if isinstance(model, Pair):
        parts = name.split("+") if ":" in name else [f"{of}:{part}" for of in model.names for part in name.split("+")]
        return _side_by_side(model, [_of_pair(model, part, _single) for part in parts])
    if "+" in name:
        return _side_by_side(model, [_single(model, part) for part in name.split("+")])
    return _single(model, name)


def _single(model: PreTrainedModel, name: str, of: str = "") -> Site:
    _check_known(f"site {name!r} is not in", name, site_names(model), of)
    kind, layer, *pathway = name.split(".")
    return Site(kind, int(layer), int(pathway[0]) if pathway else None, of=of)


def _hooked(model: PreTrainedModel, hook_name: str, of: str = "") -> Site:
    sites = {site.hook_name: site for site in (_single(model, name, of) for name in site_names(model))}
    wanted = f"{of}:{hook_name}" if of else hook_name
    _check_known(f"hook {hook_name!r} is no site of", wanted, list(sites), of)
    return sites[wanted]


def _check_known(what: str, name: str, names: list[str], of: str) -> None:
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))
        whose = f"the {of} model" if of else "this model"
        raise ValueError(f"{what} {whose}; the nearest of its {len(names)} are {near}")


def _of_pair(models: Pair, name: str, find: Callable[[PreTrainedModel, str, str], Site]) -> Site:
    """Find the site that a name such as `routed:residual.3` means."""
    of, _, rest = name.partition(":")
    if of not in models.names or not rest:
        known = " or ".join(f"{known}:" for known in models.names)
        raise ValueError(f"site {name!r}: of two models, every part begins with {known}, or none does")
    return find(models[of], rest, of)


def _side_by_side(model: Models, parts: list[Site]) -> Site:
    names, widths = [part.name for part in parts], [site_width(model, part) for part in parts]
    if len(set(widths)) > 1:
        raise ValueError(
            f"site {'+'.join(names)!r} has parts of {', '.join(map(str, widths))} dimensions; one is needed"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"site {'+'.join(names)!r} names one site twice")
    if missing := models_of(model).keys() - {part.of for part in parts}:
        raise ValueError(f"site {'+'.join(names)!r} reads nothing of the {missing.pop()} model; name a site of both")
    return Site("cross", max(part.layer for part in parts), parts=tuple(parts))


def find_pair(model: Models, source: str, target: str | None) -> tuple[Site, Site]:
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


def model_with(models: Models, site: Site) -> PreTrainedModel:
    """Return the model that has the site, which is no `cross`."""
    return models_of(models)[site.of]


def site_width(model: Models, site: Site) -> int:
    """Return the dimension of a site's activations."""
    if site.parts:
        return sum(site_width(model, part) for part in site.parts)
    weights = read_mlp(find_mlps(model_with(model, site))[site.layer])
    return weights.W_in.shape[0 if site.kind == "neurons" else 1]


def site_of_hook(model: Models, hook_name: str) -> Site:
    """Return the site that TransformerLens calls `hook_name`.

    Raises:
        ValueError: this model has no such site; the message gives the nearest names.
    """
    if isinstance(model, Pair):
        return _side_by_side(model, [_of_pair(model, part, _hooked) for part in hook_name.split("+")])
    if "+" in hook_name:
        return _side_by_side(model, [_hooked(model, part) for part in hook_name.split("+")])
    return _hooked(model, hook_name)


def hf_name(model: Models, site: Site) -> str:
    """Return the path of the module whose output (for `mlp_in` and `neurons`, input) is the site."""
    if site.parts:
        return "+".join(hf_name(model, part) for part in site.parts)
    net = model_with(model, site)
    family = family_of(net)
    layer = f"{family.layers}.{site.layer}"
    down = "" if isinstance(find_mlps(net)[site.layer], RoutedMLP) else f".{family.down}"
    name = layer + {"residual": "", "neurons": f".{family.mlp}{down}"}.get(site.kind, f".{family.mlp}")
    return site.owner + name


@torch.no_grad()
def read_sites(model: Models, input_ids: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Return activations {name: [n, d]} for token blocks [b, t]; no model runs further than its last site."""
    single = list(dict.fromkeys(part for site in sites for part in site.parts or (site,)))
    found: dict[str, Tensor] = {}
    for of, net in models_of(model).items():
        if mine := [site for site in single if site.of == of]:
            found |= _read(net, input_ids, mine)
    for site in sites:
        if site.parts:
            found[site.name] = torch.cat([found[part.name] for part in site.parts], dim=1)
    return {site.name: found[site.name] for site in sites}


def _read(model: PreTrainedModel, input_ids: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def reader(site: Site) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:
            found[site.name] = rearrange(x.detach(), "b t d -> (b t) d").clone()  # later layers may write in place
            if len(found) == len(sites):
                raise Enough

        return see

    with ExitStack() as stack:
        for site in sites:
            stack.callback(attach(model, site.kind, site.layer, site.pathway, reader(site)).remove)
        with suppress(Enough):
            model(input_ids, use_cache=False)
    return found


@contextmanager
def replaced(models: Models, source: Site, target: Site, by: Replace) -> Iterator[None]:
    """While open, replace activations y [n, o] at `target` by by(x, y), where x [n, i] are those at `source`.

    Of a pair, both sites are of one model.
    """
    model = model_with(models, target)
    seen: dict[str, Tensor] = {}

    def note(x: Tensor) -> None:
        seen["x"] = x

    def swap(y: Tensor) -> Tensor:
        x = y if source == target else seen["x"]
        new = by(rearrange(x, "b t d -> (b t) d"), rearrange(y, "b t d -> (b t) d"))
        return new.view(y.shape).to(y.dtype)

    with ExitStack() as stack:
        if source != target:
            stack.callback(attach(model, source.kind, source.layer, source.pathway, note).remove)
        stack.callback(attach(model, target.kind, target.layer, target.pathway, swap).remove)
        yield
