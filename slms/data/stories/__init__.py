"""The embedded corpus, an endless annotated story grammar; (seed, index, split) determines each story.

story(0, 7).text          a story of the training split
story(0, 7).words         its words with part of speech, semantic class, referent and number
entropy_per_word(1000)    the corpus's entropy estimate, an upper bound in nats per word

The text is in `plots/` (one file per plot), `moves.txt` (shared parts), `phrases.txt`, `words.txt` and `lexicon.txt`.

script         reads plot files in their own small language and runs them
plots          draws a plot, binds its cast, tells the opening, checks the split, tells the rest
cast           binds characters, things and places to the slots of templates
template       compiles ordinary English with a few marks to a small program
engine         tells templates with one random number per choice; sets capitals, spaces, articles, quotes
lines          reads a text file as lines and the lines indented below them
words          reads lists, tables and phrases; forms plurals
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
