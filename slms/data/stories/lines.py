"""Reads the text files beside this module as nested lines, by indentation; errors name file and line."""

from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Line(NamedTuple):
    """One line of a file: its place, its text, the lines indented below it, and whether an empty line is above it."""

    where: str
    text: str
    below: list["Line"]
    apart: bool


class TextError(ValueError):
    """A mistake in a text file; the message names file, line and rule."""


def read(file: str) -> list[Line]:
    """Return the lines of a file that are not indented, without empty lines and comments, which begin with #.

    Raises TextError if a line is not indented by exactly two spaces more than the line to which it belongs.
    """
    top: list[Line] = []
    blocks, apart = [top], False  # the blocks that the next line may join, by its depth
    for number, raw in enumerate((HERE / file).read_text(encoding="utf-8").splitlines(), 1):
        text = raw.strip()
        if not text or text[0] == "#":
            apart = True
            continue
        indent = len(raw) - len(raw.lstrip())
        if indent % 2 or indent // 2 >= len(blocks) or raw[:1] == "\t":
            raise TextError(
                f"{file}:{number}: is indented by {indent}; it must be by two spaces more than what it is below"
            )
        line = Line(f"{file}:{number}", text, [], apart)
        blocks[indent // 2].append(line)
        blocks[indent // 2 + 1 :] = [line.below]
        apart = False
    return top


def located(line: Line, error: KeyError | ValueError) -> TextError:
    """Add the line's place to an error that names none yet."""
    if isinstance(error, TextError):
        return error
    return TextError(f"{line.where}: {f'no line above gives {error}' if isinstance(error, KeyError) else error}")
