"""Entropy, repetition and word counts against their definitions."""

import pytest

from slms.data.stories import story
from slms.data.stories.measure import entropy_per_word, repetition_share, word_counts


def test_entropy_is_the_ratio_of_sums_with_its_error():
    estimate = entropy_per_word(200, seed=4)
    sample = [story(4, index) for index in range(200)]
    assert estimate.nats_per_word == pytest.approx(sum(s.nats for s in sample) / sum(s.n_words for s in sample))
    assert estimate.words_per_story == pytest.approx(sum(s.n_words for s in sample) / 200)
    other = entropy_per_word(200, seed=5)
    assert abs(other.nats_per_word - estimate.nats_per_word) < 5 * (estimate.standard_error + other.standard_error)
    assert 0.4 < estimate.nats_per_word < 0.8 and 0 < estimate.standard_error < 0.02


def test_fresh_stories_rarely_repeat_twenty_words():
    assert repetition_share(40, 800) < 0.005
    assert repetition_share(10, 400, fresh_split="validation") < 0.005


def test_repetition_counts_what_does_repeat():
    assert repetition_share(5, 200, length=1) > 0.95
    short, long = (repetition_share(20, 200, length=length) for length in (3, 8))
    assert 1 > short > long > 0


def test_word_counts_leave_out_marks():
    counts = word_counts(20, seed=6)
    assert counts.total() == sum(story(6, index).n_words for index in range(20))
    assert counts["the"] > 100 and not any(mark in counts for mark in '.,"!?')
