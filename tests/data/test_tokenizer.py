"""The embedded tokenizer: shipped files, training, the command."""

import json

import pytest

from slms.data.stories import story
from slms.data.tokenizer import END_OF_TEXT, main, train
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED


@pytest.fixture(scope="module")
def shipped():
    return read_tokenizer(EMBEDDED["stories-1m"])


def test_shipped_tokenizer_is_as_declared(shipped):
    assert len(shipped) == shipped.vocab_size == 2048
    assert shipped.convert_tokens_to_ids(END_OF_TEXT) == shipped.bos_token_id == shipped.eos_token_id == 0
    assert shipped.unk_token_id == 0 and shipped.pad_token is None and shipped.model_max_length == 2048


def test_stories_round_trip_exactly(shipped):
    for index in range(200):
        text = story(21, index, "validation").text
        assert shipped.decode(shipped(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text", ["", " ", "naïve café — 漢字 🙂\t\n\n  x", "\x00\x7f", "ISBN 978-3", 'he said "a , b" .']
)
def test_any_text_round_trips_without_the_unknown_token(shipped, text):
    ids = shipped(text)["input_ids"]
    assert shipped.decode(ids) == text and 0 not in ids


def test_nearly_every_word_is_one_token(shipped):
    words = tokens = 0
    for index in range(100):
        s = story(22, index)
        words += len(s.words)
        tokens += len(shipped(s.text)["input_ids"])
    assert 1.0 <= tokens / words < 1.08


def test_training_is_deterministic_and_saves_what_loads(tmp_path):
    main(["--out", str(tmp_path / "a"), "--vocab", "400", "--stories", "40"])
    main(["--out", str(tmp_path / "b"), "--vocab", "400", "--stories", "40"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 2048 and config["eos_token"] == END_OF_TEXT
    assert len(read_tokenizer(tmp_path / "a")) == 400


def test_vocabulary_of_the_bytes_alone_is_enough():
    tokenizer = train(vocab=257, stories=1)
    assert tokenizer.decode(tokenizer("any text")["input_ids"]) == "any text"


@pytest.mark.parametrize(
    "flags, message", [(["--vocab", "256"], "--vocab is 256"), (["--stories", "0"], "--stories is 0")]
)
def test_impossible_sizes_exit_with_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "x"), *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
