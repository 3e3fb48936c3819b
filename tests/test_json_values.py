"""Every kind of field becomes plain values and comes back, and an error names the field."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from slms.json_values import from_json_values, to_json_values


@dataclass(frozen=True)
class Inner:
    x: float
    tag: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.x > 10:
            raise ValueError("x is above 10")


@dataclass(frozen=True)
class Outer:
    name: str
    n: int
    inner: Inner
    many: list[Inner] = field(default_factory=list)
    by_name: dict[str, float] = field(default_factory=dict)
    maybe: int | None = None
    flag: bool = False
    free: Any = None


GOOD = {
    "name": "é\n",
    "n": 3,
    "inner": {"x": 1.5, "tag": "b"},
    "many": [{"x": 2.0, "tag": "a"}],
    "by_name": {"k": 0.25},
    "maybe": None,
    "flag": True,
    "free": {"a": [1]},
}


def test_round_trip_is_exact():
    outer = from_json_values(Outer, GOOD)
    assert outer == Outer("é\n", 3, Inner(1.5, "b"), [Inner(2.0)], {"k": 0.25}, None, True, {"a": [1]})
    assert to_json_values(outer) == GOOD


def test_a_number_that_is_not_finite_is_written_as_null():
    assert to_json_values(Inner(float("nan"))) == {"x": None, "tag": "a"}
    assert to_json_values([float("inf"), 1.0]) == [None, 1.0]


def test_whole_numbers_are_accepted_for_floats_only():
    assert from_json_values(Inner, {"x": 2}).x == 2.0
    with pytest.raises(ValueError, match=r"^n is 2\.0; it must be a whole number$"):
        from_json_values(Outer, GOOD | {"n": 2.0})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": True}, "n is True; it must be a whole number"),
        ({"name": 3}, "name is 3; it must be a string"),
        ({"inner": None}, "inner is None; it must be an object"),
        ({"inner": {"x": "1"}}, "inner.x is '1'; it must be a finite number"),
        ({"inner": {"x": float("inf")}}, "inner.x is inf; it must be a finite number"),
        ({"inner": {"x": 10**400}}, "inner.x is 1000000000000000000000000000000000000...; it must be a finite number"),
        ({"inner": {"x": 1, "tag": "c"}}, "inner.tag is 'c'; it must be one of a, b"),
        ({"inner": {"x": 11}}, "inner.x is above 10"),
        ({"inner": {}}, "inner.x is missing"),
        ({"many": {}}, "many is {}; it must be a list"),
        ({"many": [{"x": 1}, {"x": []}]}, "many[1].x is []; it must be a finite number"),
        ({"by_name": {"k": None}}, "by_name.k is None; it must be a finite number"),
        ({"maybe": "x"}, "maybe is 'x'; it must be a whole number"),
        ({"more": 1}, "more is not a field of this format"),
    ],
)
def test_error_names_field_value_and_rule(change, message):
    with pytest.raises(ValueError) as error:
        from_json_values(Outer, GOOD | change)
    assert str(error.value) == message
