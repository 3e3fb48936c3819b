"""Converts dataclasses to plain JSON values and back, with errors that name the field.

`from_json_values` checks every value against the dataclass's type annotations. It supports str, int, float, bool, None,
Literal, unions, list[X], dict[str, X] and dataclasses of those.
"""

import dataclasses
import math
import types
import typing
from typing import Any

WORDS = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false", type(None): "null"}


def to_json_values(value: Any) -> Any:
    """Convert a (nested) dataclass to dicts, lists, strings and numbers. A number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json_values(kind: Any, value: Any, where: str = "") -> Any:
    """Convert a plain JSON value to `kind`; raise ValueError "<where> is <value>; it must be …" if it does not fit."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _union(kind, value, where)
    if origin is typing.Literal:
        if not any(type(value) is type(word) and value == word for word in typing.get_args(kind)):
            raise _wrong(where, value, "one of " + ", ".join(map(str, typing.get_args(kind))))
        return value
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        (item_kind,) = typing.get_args(kind)
        return [from_json_values(item_kind, item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        item_kind = typing.get_args(kind)[1]
        return {key: from_json_values(item_kind, item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if kind is Any:
        return value
    return _scalar(kind, value, where)


def _union(kind: Any, value: Any, where: str) -> Any:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(kind)):
        return None
    assert len(options) == 1, f"{where}: a union of {options} is ambiguous"
    return from_json_values(options[0], value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    dot = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            raise ValueError(f"{dot}{key} is not a field of this format")
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{dot}{name} is missing")
    arguments = {name: from_json_values(hints[name], item, f"{dot}{name}") for name, item in value.items()}
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{dot}{error}") from None


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise _wrong(where, value, WORDS[kind])
    return value


def _wrong(where: str, value: Any, rule: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return ValueError(f"{where or 'the content'} is {shown}; it must be {rule}")
