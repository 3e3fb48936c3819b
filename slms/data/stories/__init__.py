"""The embedded corpus: an endless annotated story grammar, deterministic by (seed, index, split).

story(0, 7).text          a story of the training split
story(0, 7).words         its words with part of speech, semantic class, referent and number
entropy_per_word(1000)    the corpus's entropy estimate, an upper bound in nats per word

The text: `plots/` (one plot a file), `moves.txt` (what plots share), `phrases.txt`, `words.txt` and `lexicon.txt`.

script         the language of plot files, read once and run
plots          a plot is drawn, its cast bound, its opening told, the split checked, the rest told
cast           what a story binds to the slots of its templates
template       ordinary English with a few marks, compiled once to a small program
engine         tells templates, one random number a choice, then sets capitals, spaces, articles, quotes
lines          a text file as lines and the lines indented below them
words          lists, tables and phrases read from text; plurals
lexicon        the label sets and the lexicon
measure        entropy, repetition, word types
probes         minimal pairs in the corpus's own words
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
