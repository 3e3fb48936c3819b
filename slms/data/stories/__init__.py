"""The embedded corpus: an endless annotated story grammar, deterministic by (seed, index, split).

story(0, 7).text          a story of the training split
story(0, 7).words         its words with part of speech, semantic class, referent and number
entropy_per_word(1000)    the corpus's entropy estimate, an upper bound in nats per word

cast           what a story binds to the slots of its templates
discourse      the parts that all plots share
engine         tells templates, one random number a choice, then sets capitals, spaces, articles, quotes
entities       names, toys, foods, animals, places, and how each may be described
lexicon        the label sets and the lexicon
measure        entropy, repetition, word types
phrases        choices of words that many templates share, as pieces of template text
plots          a plot is drawn, its cast bound, an opening told, a split checked, the plot told
plots_deeds    a rescue and a garden
plots_friends  plots about getting on with others
plots_home     a storm, a birthday cake, a noise in the night
plots_lost     plots about things and friends that go missing
plots_race     a plot about a race that is not won by the fastest
probes         minimal pairs in the corpus's own words
template       ordinary English with a few marks, compiled once to a small program
wordlists      word lists of the lexicon, by part of speech and semantic class
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
