"""Wrong options of a coder are refused, each with a clear message."""

from typing import get_args

import pytest

from slms.sae.config import CoderConfig, Kind


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kind", "sparse"),
        ("expansion", 0),
        ("d_sae", 0),
        ("k", 0),
        ("k_aux", 0),
        ("sparsity", -1.0),
        ("aux", -0.1),
        ("bandwidth", 0.0),
        ("prefixes", (0.5, 0.25, 1.0)),
        ("prefixes", (0.5, 0.9)),
        ("prefixes", (0.0, 1.0)),
    ],
)
def test_refused(option, value):
    with pytest.raises(ValueError, match=rf"coder\.{option} is") as error:
        CoderConfig(**{option: value})
    assert str(value) in str(error.value)


def test_kinds_with_a_fixed_k():
    assert [kind for kind in get_args(Kind) if CoderConfig(kind=kind).fixed_k] == ["topk", "batch_topk", "matryoshka"]


def test_width():
    assert CoderConfig(expansion=4).width(8) == 32
    assert CoderConfig(expansion=4, d_sae=50).width(8) == 50
    with pytest.raises(ValueError, match=r"coder\.k is 32; it must be at most the coder's 16 latents"):
        CoderConfig(expansion=2).width(8)
