"""Places, which give one name to every part of a model that can be routed, measured, hooked or logged.

L3.attn    the attention of layer 3
L3.mlp     the MLP of layer 3
L3.resid   the residual stream after layer 3
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

PARTS = ("attn", "mlp", "resid")
"""In the order in which a layer computes them."""
_NAME = re.compile(rf"L(\d+)\.({'|'.join(PARTS)})")


class Place(NamedTuple):
    """A parsed place name; places sort in the order in which the model computes them."""

    layer: int
    order: int
    """index of the part in `PARTS`"""

    @property
    def part(self) -> str:
        """`attn`, `mlp` or `resid`."""
        return PARTS[self.order]


def place_name(layer: int, part: str = "mlp") -> str:
    """Return the name of a layer's part.

    >>> place_name(3), place_name(3, "attn")
    ('L3.mlp', 'L3.attn')
    """
    assert part in PARTS, part
    return f"L{layer}.{part}"


def parse_place(name: str) -> Place:
    """Parse a place's name into its layer and part.

    >>> parse_place("L3.mlp").layer, sorted(["L10.mlp", "L2.resid", "L2.attn"], key=parse_place)
    (3, ['L2.attn', 'L2.resid', 'L10.mlp'])

    Raises:
        ValueError: the name is not a place.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"place {name!r}: it must be a layer and one of {', '.join(PARTS)}, as in L3.mlp")
    return Place(int(found[1]), PARTS.index(found[2]))


def layer_of(name: str) -> int:
    """Return the layer of a place."""
    return parse_place(name).layer


def in_order(names: Iterable[str]) -> list[str]:
    """Sort places as the model computes them; other names (of a coder, a mean) come last, in the given order."""
    names = list(names)
    known = [name for name in names if _NAME.fullmatch(name)]
    return sorted(known, key=parse_place) + [name for name in names if name not in known]


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten names for the ticks of a figure or the rows of a table: drop the part if all places have the same.

    >>> short_names(["L0.mlp", "L3.mlp"]), short_names(["L3.attn", "L3.mlp"]), short_names(["residual.3"])
    (['L0', 'L3'], ['L3.attn', 'L3.mlp'], ['residual.3'])
    """
    ends = {name.rpartition(".")[2] if _NAME.fullmatch(name) else None for name in names}
    return [name.partition(".")[0] for name in names] if len(ends) == 1 and None not in ends else list(names)
