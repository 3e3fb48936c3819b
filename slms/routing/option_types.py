"""The types of the routing options: whether a value has one, and how both are spelled in messages."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def fits(kind: Any, value: Any) -> bool:
    """Return whether a plain JSON value has a field's type."""
    if get_origin(kind) in (Union, UnionType):
        return value is None or any(fits(inner, value) for inner in get_args(kind) if inner is not NoneType)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool, str):
        return type(value) is kind
    return isinstance(value, list) and all(type(item) is int for item in value)


def described(kind: Any) -> str:
    """Describe a field's type in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join("null" if inner is NoneType else described(inner) for inner in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(
        kind, "a list of whole numbers"
    )


def typed(value: object) -> str:
    """Spell a value as you would type it in a flag.

    >>> typed(None), typed(True), typed(0.5), typed("softmax")
    ('null', 'true', '0.5', 'softmax')
    """
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
