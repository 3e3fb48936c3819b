"""The embedded corpus: an endless annotated story grammar, deterministic by (seed, index, split).

story(0, 7).text          a story of the training split
story(0, 7).words         its words with part of speech, semantic class, referent and number
entropy_per_word(1000)    the corpus's entropy estimate, an upper bound in nats per word
"""

from slms.data.stories.engine import Word
from slms.data.stories.lexicon import LEXICON, NUMBER, POS, SEMANTIC
from slms.data.stories.measure import entropy_per_word, repetition_share
from slms.data.stories.plots import PLOTS, SPLITS, Story, story
from slms.data.stories.template import PHENOMENA

__all__ = [
    "LEXICON",
    "NUMBER",
    "PHENOMENA",
    "PLOTS",
    "POS",
    "SEMANTIC",
    "SPLITS",
    "Story",
    "Word",
    "entropy_per_word",
    "repetition_share",
    "story",
]
