"""A run's model and text are decided together, printed in one line, and recorded for use from any directory."""

from types import SimpleNamespace

import pytest
from jsonargparse import Namespace

from slms.data.corpora import CorpusConfig
from slms.data.module import TextData
from slms.lit import sources
from slms.lit.sources import settle
from slms.models import source
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED, BaseConfig

PAIR = {"hub": "roneneldan/TinyStories-1M", "embedded": "stories-1m", "tokenizer": "EleutherAI/gpt-neo-125M"}
TEXT = {"hub": "roneneldan/TinyStories", "embedded": "stories"}
SIZES = {"block_size": 32, "train_tokens": 256, "epoch_tokens": None, "val_tokens": 128, "seed": 0, "stream": False}


def config(base, corpus):
    corpus = Namespace(**vars(CorpusConfig(**corpus)))
    return Namespace(
        model=Namespace(base=Namespace(**vars(BaseConfig(**base)))), data=Namespace(corpus=corpus, **SIZES)
    )


@pytest.fixture
def offline(monkeypatch):
    """The model in the local cache, no hub, and the corpus as `data` says."""
    state = SimpleNamespace(data=False)
    monkeypatch.setattr(source, "cached_snapshot", lambda name, *_, **__: EMBEDDED["stories-1m"])
    monkeypatch.setattr(source, "hub_trouble", lambda *_, **__: "the hub cannot be reached")
    monkeypatch.setattr(sources, "is_cached", lambda name: state.data)
    return state


def test_without_its_corpus_a_cached_model_gives_way_with_it(offline, capsys):
    given = config(PAIR, TEXT)
    resolved = settle(given)
    assert (resolved.kind, resolved.name, resolved.stand_in) == ("embedded", "stories-1m", True)
    assert given.model.base.source == given.data.source == "embedded"
    assert CorpusConfig(**vars(given.data.corpus)).resolve(given.data.source) == "stories"
    assert capsys.readouterr().out == (
        "base stories-1m (embedded) stands in for roneneldan/TinyStories-1M: its corpus is not in the local cache and "
        "the hub cannot be reached; data stories (embedded)\n"
    )


def test_with_its_corpus_in_a_cache_a_cached_model_stays(offline, capsys):
    offline.data = True
    assert settle(config(PAIR, TEXT)).kind == "hub"
    line = "base roneneldan/TinyStories-1M (hub, from the local cache); data roneneldan/TinyStories (hub)\n"
    assert capsys.readouterr().out == line


def test_blocks_that_an_earlier_run_made_are_as_good_as_the_corpus(offline, monkeypatch):
    tokenizer = read_tokenizer(EMBEDDED["stories-1m"])
    data = TextData(CorpusConfig(**TEXT), tokenizer, "hub", **SIZES)
    for split, n_tokens in (("train", 256), ("validation", 128)):
        assert settle(config(PAIR, TEXT)).kind == "embedded"
        path = data._spec(split, n_tokens).path(tokenizer)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert settle(config(PAIR, TEXT)).kind == "hub"
    streamed = config(PAIR, TEXT)
    streamed.data.stream, streamed.data.epoch_tokens = True, 64
    assert settle(streamed).kind == "embedded"


def test_a_strict_source_does_not_give_way(offline):
    assert settle(config(PAIR | {"source": "hub"}, TEXT)).kind == "hub"


def test_paths_are_written_back_absolute(tmp_path, monkeypatch, capsys, shared_data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").symlink_to(shared_data / "stories260K")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    given = config({"name": "m", "tokenizer": "./m"}, {"name": "a.txt", "validation": "b.txt"})
    settle(given)
    a, b, m = (f"{tmp_path}/{name}" for name in ("a.txt", "b.txt", "m"))
    assert (given.model.base.name, given.model.base.tokenizer) == (m, m)
    assert (given.data.corpus.name, given.data.corpus.validation) == (a, b)
    assert set(given.data.corpus.files) == {a, b}
    assert capsys.readouterr().out == f"base m (directory); data {a}, validation {b}\n"
