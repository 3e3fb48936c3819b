"""Where a base comes from: embedded, directory, hub; strict or with a declared stand-in; and what bad names get."""

from types import SimpleNamespace

import pytest

from slms.models import source
from slms.models.source import BaseConfig, Resolved, as_base, fetch, looks_like_path, resolve

TINYSTORIES = {"hub": "roneneldan/TinyStories-1M", "embedded": "stories-1m", "tokenizer": "EleutherAI/gpt-neo-125M"}


@pytest.fixture
def hub(monkeypatch):
    """What the cache holds and the hub answers, for the decision alone; test_hub.py runs the real client."""
    state = SimpleNamespace(cached=set(), trouble=None, asked=[])
    monkeypatch.setattr(source, "cached_snapshot", lambda name, *_, **__: name if name in state.cached else None)
    monkeypatch.setattr(source, "hub_trouble", lambda name, *_, **__: state.asked.append(name) or state.trouble)
    return state


def test_auto_takes_cache_then_hub_then_stand_in(hub):
    base = BaseConfig(**TINYSTORIES)
    hub.trouble = "the hub cannot be reached"
    assert resolve(base) == Resolved(
        "embedded",
        "stories-1m",
        "base stories-1m (embedded) stands in for roneneldan/TinyStories-1M: the hub cannot be reached",
        stand_in=True,
    )
    hub.trouble = None
    assert resolve(base) == Resolved("hub", base.hub, f"base {base.hub} (hub)")
    hub.asked.clear()
    hub.cached = {base.hub}
    assert not resolve(base).cached, "its tokenizer is not cached"
    hub.cached = {base.hub, base.tokenizer}
    hub.asked.clear()
    assert resolve(base) == Resolved("hub", base.hub, f"base {base.hub} (hub, from the local cache)", cached=True)
    assert hub.asked == []


def test_model_and_corpus_are_decided_together(hub):
    """A cached model whose corpus needs the network gives way with it."""
    base = BaseConfig(**TINYSTORIES)
    hub.cached, hub.trouble = {base.hub, base.tokenizer}, "the hub cannot be reached"
    assert resolve(base, corpus_cached=lambda: True).kind == "hub"
    assert resolve(base, corpus_cached=lambda: False).kind == "embedded"
    hub.trouble = None
    assert resolve(base, corpus_cached=lambda: False) == Resolved(
        "hub", base.hub, f"base {base.hub} (hub)", cached=True
    )


def test_hub_and_embedded_are_strict(hub):
    hub.trouble = "the hub cannot be reached"
    with pytest.raises(OSError, match="base roneneldan/TinyStories-1M is not in the local cache and the hub cannot be"):
        resolve(BaseConfig(**TINYSTORIES, source="hub"))
    with pytest.raises(OSError, match="EleutherAI/pythia-70m is not in the local cache"):
        resolve("EleutherAI/pythia-70m")
    hub.trouble = None
    assert resolve(BaseConfig(**TINYSTORIES, source="embedded")) == Resolved(
        "embedded", "stories-1m", "base stories-1m (embedded)"
    )
    assert hub.asked == ["roneneldan/TinyStories-1M", "EleutherAI/pythia-70m"]


def test_a_decision_written_back_is_the_same_decision(hub):
    for base in (BaseConfig(**TINYSTORIES), BaseConfig(name="stories-1m"), BaseConfig(hub="a/b")):
        first = resolve(base)
        again = resolve(BaseConfig(**{**vars(base), "source": first.kind}))
        assert (again.kind, again.name) == (first.kind, first.name)


def test_a_directory_is_local(shared_data):
    place = str(shared_data / "stories260K")
    assert resolve(place) == Resolved("local", place, f"base {place} (directory)")
    assert resolve(BaseConfig(name=place, source="local")).kind == "local"
    assert str(fetch(resolve(place))) == place


def test_a_parsed_namespace_is_as_good_as_the_dataclass():
    from jsonargparse import Namespace

    assert as_base(Namespace(**vars(BaseConfig(**TINYSTORIES)))) == BaseConfig(**TINYSTORIES)
    assert as_base("stories-1m") == BaseConfig(name="stories-1m")


@pytest.mark.parametrize(
    "name", ["./model", "../model", "/a/b", "~/model", "runs/x/model", "a\\b", "tests/no-such-model", "slms/modle"]
)
def test_a_mistyped_path_is_not_looked_up_on_the_hub(name, hub, monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "slms").mkdir()
    monkeypatch.chdir(tmp_path)
    assert looks_like_path(name)
    with pytest.raises(FileNotFoundError, match="is no directory") as caught:
        resolve(name)
    assert hub.asked == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-70m-deduped", "roneneldan/TinyStories-1M"])
def test_hub_ids_do_not_look_like_paths(name):
    assert not looks_like_path(name)


@pytest.mark.parametrize("name", ["-x", "with space", "a..b", "x" * 200])
def test_what_can_be_nothing_says_so(name, hub):
    with pytest.raises(ValueError, match=r"is no embedded name \(stories-1m\), directory, .gguf file or hub id"):
        resolve(name)
    assert hub.asked == []


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "`base` needs either `name`, or `hub` with `embedded` as its stand-in"),
        ({"hub": "y/z", "embedded": "stories-2m"}, "`base.embedded` is 'stories-2m'; it must be one of stories-1m"),
        ({"hub": "y/z", "source": "embedded"}, "`base.source` is embedded; `base.embedded` must then be given"),
        ({"embedded": "stories-1m", "source": "hub"}, "`base.source` is hub; `base.hub` must then be given"),
        ({"name": "x", "d_model": 128}, "`base.d_model` is 128; another shape needs `base.init` random"),
        ({"name": "x", "init": "random", "vocab": 0}, "`base.vocab` is 0; it must be at least 1"),
        ({"name": "x", "init": "random", "d_model": 10, "n_heads": 4}, "must be a multiple of n_heads"),
    ],
)
def test_impossible_configurations_name_field_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        BaseConfig(**fields)


def test_embedded_source_refuses_another_name():
    with pytest.raises(ValueError, match="is embedded; `gpt2` must then be one of stories-1m"):
        resolve(BaseConfig(name="gpt2", source="embedded"))


def test_a_name_given_over_a_pair_wins():
    base = BaseConfig(**TINYSTORIES, name="stories-1m")
    assert (base.name, base.hub, base.embedded) == ("stories-1m", None, None)
