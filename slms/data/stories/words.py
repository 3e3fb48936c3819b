"""Reads the words of `words.txt` and the phrases of `phrases.txt`, and forms plurals.

A section of such a file is a name, a colon and a text, on the same line or on lines indented below it.
"""

from slms.data.stories.lines import TextError, read


def sections(file: str) -> dict[str, list[str]]:
    """Map each section's name to its lines; raise TextError if a line has no name, or one that is already used."""
    found: dict[str, list[str]] = {}
    for line in read(file):
        name, colon, text = line.text.partition(":")
        if not colon or name in found:
            raise TextError(f"{line.where}: {line.text!r} must be a new name, a colon and a text")
        found[name] = [text.strip()] * bool(text) + [more.text for more in line.below]
    return found


def table(text: str) -> tuple[tuple[str, ...], ...]:
    """Return the entries of a text between commas, each a tuple of words."""
    return tuple(tuple(entry.split()) for entry in text.split(","))


_TEXTS = {name: " ".join(lines) for name, lines in sections("words.txt").items()}
WORDS = {name: tuple(text.split()) for name, text in _TEXTS.items() if "," not in text}
TABLES = {name: table(text) for name, text in _TEXTS.items() if "," in text}
PHRASES = {
    name: "|".join(lines).join("()") if lines[1:] else lines[0] for name, lines in sections("phrases.txt").items()
}


def pairs(name: str) -> dict[str, str]:
    """Read a table of two columns, which maps the first word to the second."""
    return {first: second for first, second in TABLES[name]}


IRREGULAR = pairs("irregular")


def listed(text: str) -> tuple[str, ...]:
    """Return the words of a text, in which `@pets` stands for that list; raise ValueError if there is no such list."""
    words: list[str] = []
    for word in text.split():
        if word[0] == "@" and word[1:] not in WORDS:
            raise ValueError(f"{word!r} is no list of words.txt")
        words += WORDS[word[1:]] if word[0] == "@" else [word]
    return tuple(words)


def plural(noun: str) -> str:
    """Return the plural of a noun and keep a label override: `orange/noun.food` gives `oranges/noun.food`."""
    word, slash, labels = noun.partition("/")
    return IRREGULAR.get(word, word + ("es" if word.endswith(("ss", "ch", "sh", "x")) else "s")) + slash + labels
