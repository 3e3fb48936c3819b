"""Where a base comes from: embedded, a directory, or the Hugging Face hub, decided within seconds and said aloud."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slms.models.directory import check_directory
from slms.models.hub import cached_snapshot, download
from slms.network import HUB_TIMEOUT_S, hub_trouble

EMBEDDED = {"stories-1m": Path(__file__).parent / "assets" / "stories-1m"}

_SHAPE = ("d_model", "n_layers", "n_heads", "vocab")


@dataclass(frozen=True)
class BaseConfig:
    """The dense model that a run starts from: ``name``, or ``hub`` with ``embedded`` as its declared stand-in.

    Args:
        name: `stories-1m` (embedded), a Hugging Face id, or a directory in Hugging Face format; wins over `hub`.
        hub: a Hugging Face id, in place of `name`.
        embedded: the embedded base that stands in where `hub` is neither cached nor reachable.
        source: `auto`: the local cache, then the hub, then the stand-in. The others are strict.
        tokenizer: where the tokenizer is taken from when not from the base: a name, id or directory.
        init: `random` keeps the architecture and draws new weights.
        seed: seeds random weights.
        revision: branch, tag or commit on the hub.
        d_model: width, in place of the base's; random weights only, like the next three.
        n_layers: number of layers.
        n_heads: number of attention heads.
        vocab: size of the vocabulary, in tokens.
    """

    name: str | None = None
    hub: str | None = None
    embedded: str | None = None
    source: Literal["auto", "hub", "embedded", "local"] = "auto"
    tokenizer: str | None = None
    init: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    revision: str | None = None
    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    vocab: int | None = None

    def __post_init__(self):
        if self.name is not None:  # named on the command line over a YAML's pair
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
    """Where a base comes from."""

    kind: Literal["embedded", "local", "hub"]
    name: str
    note: str
    """One line for people, such as `base roneneldan/TinyStories-1M from the hub`."""
    stand_in: bool = False
    """Whether the embedded base replaces a hub id that cannot be had."""
    cached: bool = False
    """Whether the hub's files are all in the local cache, so that no network is needed."""


def as_base(base: Any) -> BaseConfig:
    """A BaseConfig from one, from a name, or from a parsed namespace of its fields."""
    if isinstance(base, BaseConfig):
        return base
    return BaseConfig(name=str(base)) if isinstance(base, str | Path) else BaseConfig(**vars(base))


def resolve(
    base: BaseConfig | str, corpus_cached: Callable[[], bool] = lambda: True, timeout_s: float = HUB_TIMEOUT_S
) -> Resolved:
    """Decide where a base comes from, without reading weights.

    corpus_cached: whether the hub corpus that goes with the base needs no network; if it does, the hub must answer, or
    the stand-in takes the place of both.
    Raises ValueError for a name that cannot be one, OSError where a strict source cannot be had.
    """
    base = as_base(base)
    name = base.name or (base.embedded if base.source == "embedded" or base.hub is None else base.hub)
    assert name is not None, base  # BaseConfig saw to it
    if base.source in ("auto", "embedded") and name in EMBEDDED:
        return Resolved("embedded", name, f"base {name} (embedded)")
    if base.source == "embedded":
        raise ValueError(f"`base.source` is embedded; `{name}` must then be one of {', '.join(EMBEDDED)}.")
    if base.source == "local" or (base.source == "auto" and base.hub is None and looks_like_path(name)):
        check_directory(Path(name).expanduser(), weights=base.init == "pretrained")
        return Resolved("local", name, f"base {name} (directory)")
    if not _is_hub_id(name):
        raise ValueError(f"base `{name}` is no embedded name ({', '.join(EMBEDDED)}), directory or hub id.")
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
    """Whether a name means a place on this machine, so that a mistyped one is never looked up on the hub.

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
    """The directory with a base's files, downloaded where need be: configuration, tokenizer, weights.

    Safetensors are preferred; pickled weights are taken only where the repository has no others.
    """
    if resolved.kind != "hub":
        return EMBEDDED.get(resolved.name, Path(resolved.name).expanduser())
    path = cached_snapshot(resolved.name, revision, weights=weights) if resolved.cached else None
    return path or download(resolved.name, revision, ["config.json", "generation_config.json"], weights)


def local_tokenizer(name: str) -> Path | None:
    """Directory of a tokenizer that needs no network: embedded, a directory, or cached from the hub."""
    if name in EMBEDDED or looks_like_path(name):
        return EMBEDDED.get(name, Path(name).expanduser())
    return cached_snapshot(name, config=False, weights=False, tokenizer=True)


def fetch_tokenizer(name: str) -> Path:
    """Directory of a tokenizer named apart from its model."""
    path = local_tokenizer(name)
    if path is None:
        trouble = hub_trouble(name)
        if trouble is not None:
            raise OSError(f"tokenizer {name} is not in the local cache and {trouble}")
        path = download(name, None, ["config.json"], weights=False)
    if not path.is_dir():
        raise FileNotFoundError(f"`base.tokenizer` is {name!r}; there is no such directory.")
    return path
