"""Decides within seconds whether a base is embedded, a directory, or from the Hugging Face hub, and reports it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slms.models.directory import check_directory
from slms.models.from_gguf import PACKAGED, converted, gguf_file, is_gguf
from slms.models.hub import cached_snapshot, download
from slms.network import HUB_TIMEOUT_S, hub_trouble

EMBEDDED = {"stories-1m": Path(__file__).parent / "assets" / "stories-1m"}

_SHAPE = ("d_model", "n_layers", "n_heads", "vocab")


@dataclass(frozen=True)
class BaseConfig:
    """The dense model that a run starts from: ``name``, or ``hub`` with ``embedded`` as its declared stand-in.

    Args:
        name: `stories-1m` (embedded), `smollm2-135m` (in a Python package), a Hugging Face id, a directory in Hugging
            Face format, or a .gguf file; overrides `hub`.
        hub: a Hugging Face id, used if there is no `name`.
        embedded: the embedded base to use if `hub` is neither cached nor reachable.
        source: `auto` tries the local cache, then the hub, then the stand-in; every other value allows only that one.
        tokenizer: a name, id, directory or .gguf file to take the tokenizer from; by default the base.
        init: `pretrained` loads the base's weights; `random` keeps its architecture and draws new weights.
        seed: seeds random weights; by default 0, in train.py `seed_everything`.
        revision: branch, tag or commit on the hub.
        d_model: width that replaces the base's; this and the next three need random weights.
        n_layers: number of layers that replaces the base's.
        n_heads: number of attention heads that replaces the base's.
        vocab: size of the vocabulary, in tokens, that replaces the base's.
    """

    name: str | None = None
    hub: str | None = None
    embedded: str | None = None
    source: Literal["auto", "hub", "embedded", "local"] = "auto"
    tokenizer: str | None = None
    init: Literal["pretrained", "random"] = "pretrained"
    seed: int | None = None
    revision: str | None = None
    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    vocab: int | None = None

    def __post_init__(self):
        for field in ("name", "hub", "tokenizer", "revision"):
            if getattr(self, field) == "":
                raise ValueError(f"`base.{field}` is empty.")
        if self.name is not None:  # a name on the command line overrides the pair in a YAML
            object.__setattr__(self, "hub", None)
            object.__setattr__(self, "embedded", None)
        elif self.hub is None and self.embedded is None:
            raise ValueError("`base` needs either `name`, or `hub` with `embedded` as its stand-in.")
        if self.embedded is not None and self.embedded not in EMBEDDED:
            raise ValueError(f"`base.embedded` is {self.embedded!r}; it must be one of {', '.join(EMBEDDED)}.")
        if self.source in ("hub", "embedded") and self.name is None and getattr(self, self.source) is None:
            raise ValueError(f"`base.source` is {self.source}; `base.{self.source}` must then be given.")
        for field in _SHAPE:
            value = getattr(self, field)
            if value is not None and self.init != "random":
                raise ValueError(f"`base.{field}` is {value}; another shape needs `base.init` random.")
            if value is not None and value < 1:
                raise ValueError(f"`base.{field}` is {value}; it must be at least 1.")
        if self.d_model is not None and self.n_heads is not None and self.d_model % self.n_heads:
            raise ValueError(f"`base.d_model` is {self.d_model}; it must be a multiple of n_heads ({self.n_heads}).")


class Resolved(NamedTuple):
    """The origin of a base."""

    kind: Literal["embedded", "local", "hub"]
    name: str
    note: str
    """One line for the user, such as `base roneneldan/TinyStories-1M from the hub`."""
    stand_in: bool = False
    """Whether the embedded base replaces a hub id that is not available."""
    cached: bool = False
    """Whether the local cache has all files of the hub, so that no network is needed."""


def as_base(base: Any) -> BaseConfig:
    """Make a BaseConfig from a BaseConfig, a name, or a parsed namespace of its fields."""
    if isinstance(base, BaseConfig):
        return base
    return BaseConfig(name=str(base)) if isinstance(base, str | Path) else BaseConfig(**vars(base))


def resolve(
    base: BaseConfig | str, corpus_cached: Callable[[], bool] = lambda: True, timeout_s: float = HUB_TIMEOUT_S
) -> Resolved:
    """Decide where a base comes from, without reading weights.

    corpus_cached: returns whether the hub corpus that belongs to the base is cached. If not, the hub must answer; else
    the stand-in replaces both.
    Raises ValueError for an impossible name, and OSError if a strict source is not available.
    """
    base = as_base(base)
    name = base.name or (base.embedded if base.source == "embedded" or base.hub is None else base.hub)
    assert name is not None, base  # BaseConfig has checked this
    if base.source in ("auto", "embedded") and name in EMBEDDED:
        return Resolved("embedded", name, f"base {name} (embedded)")
    if base.source == "embedded":
        raise ValueError(f"`base.source` is embedded; `{name}` must then be one of {', '.join(EMBEDDED)}.")
    if base.source in ("auto", "local") and is_gguf(name):
        gguf_file(name)
        return Resolved(
            "local", name, f"base {name} ({f'package {PACKAGED[name].package}' if name in PACKAGED else 'GGUF'})"
        )
    if base.source == "local" or (base.source == "auto" and base.hub is None and looks_like_path(name)):
        check_directory(Path(name).expanduser(), weights=base.init == "pretrained")
        return Resolved("local", name, f"base {name} (directory)")
    if not _is_hub_id(name):
        raise ValueError(f"base `{name}` is no embedded name ({', '.join(EMBEDDED)}), directory, .gguf file or hub id.")
    own_tokenizer = base.tokenizer is None
    cached = cached_snapshot(
        name, base.revision, weights=base.init == "pretrained", tokenizer=own_tokenizer
    ) is not None and (base.tokenizer is None or local_tokenizer(base.tokenizer) is not None)
    if cached and (base.source != "auto" or base.embedded is None or corpus_cached()):
        return Resolved("hub", name, f"base {name} (hub, from the local cache)", cached=True)
    trouble = hub_trouble(name, base.revision, timeout_s)
    if trouble is None:
        return Resolved("hub", name, f"base {name} (hub)", cached=cached)
    if base.source == "auto" and base.embedded is not None:
        lacking = "its corpus is not in the local cache and " if cached else ""
        note = f"base {base.embedded} (embedded) stands in for {name}: {lacking}{trouble}"
        return Resolved("embedded", base.embedded, note, stand_in=True)
    raise OSError(
        f"base {name} is not in the local cache and {trouble}; name a model directory, or "
        f"{', '.join(EMBEDDED)}, which is embedded"
    )


def looks_like_path(name: str) -> bool:
    """Return whether a name means a path on this machine, so that a mistyped path is never looked up on the hub.

    >>> looks_like_path("EleutherAI/pythia-70m"), looks_like_path("./model"), looks_like_path("runs/a/model")
    (False, True, True)
    """
    path = Path(name).expanduser()
    partly = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or path.exists() or partly


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def fetch(resolved: Resolved, revision: str | None = None, weights: bool = True) -> Path:
    """Return the directory with a base's configuration, tokenizer and weights; download them if necessary.

    Safetensors are preferred; pickled weights are used only if the repository has no others.
    """
    if resolved.kind != "hub":
        return _at_hand(resolved.name, weights)
    path = cached_snapshot(resolved.name, revision, weights=weights) if resolved.cached else None
    return path or download(resolved.name, revision, ["config.json", "generation_config.json"], weights)


def _at_hand(name: str, weights: bool) -> Path:
    """Return the directory of a base that needs no network."""
    if name in EMBEDDED:
        return EMBEDDED[name]
    return converted(gguf_file(name), weights) if is_gguf(name) else Path(name).expanduser()


def local_tokenizer(name: str) -> Path | None:
    """Return the directory of a tokenizer that needs no network: embedded, local, or cached from the hub."""
    if name in EMBEDDED or is_gguf(name) or looks_like_path(name):
        return _at_hand(name, weights=False)
    return cached_snapshot(name, config=False, weights=False, tokenizer=True)


def fetch_tokenizer(name: str) -> Path:
    """Return the directory of a tokenizer that is named separately from its model."""
    path = local_tokenizer(name)
    if path is None:
        trouble = hub_trouble(name)
        if trouble is not None:
            raise OSError(f"tokenizer {name} is not in the local cache and {trouble}")
        path = download(name, None, ["config.json"], weights=False)
    if not path.is_dir():
        raise FileNotFoundError(f"`base.tokenizer` is {name!r}; there is no such directory.")
    return path
