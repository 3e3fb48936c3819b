"""Both command lines take booleans as flags, and still refuse what is wrong."""

import pytest

from callbacks import CALLBACKS
from slms.cli import Parser
from slms.lit.parser import TrainParser
from slms.measure.kernels import KernelOptions


def evaluation() -> Parser:
    parser = Parser(prog="eval.py")
    parser.add_class_arguments(KernelOptions, "kernels")
    return parser


def training() -> TrainParser:
    parser = TrainParser(prog="train.py")
    parser.add_lightning_class_args(CALLBACKS["kernels"], "kernels")
    return parser


@pytest.mark.parametrize("make", [evaluation, training])
@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--kernels.calibrate"], True),
        (["--kernels.calibrate", "true"], True),
        (["--kernels.calibrate=false"], False),
        (["--kernels.calibrate", "--n", "3"], True),
    ],
)
def test_a_boolean_is_a_flag(make, words, value):
    parser = make()
    parser.add_argument("--n", type=int, default=3)
    parsed = parser.parse_args(words)
    assert parsed.kernels.calibrate is value and parsed.n == 3


@pytest.mark.parametrize("make", [evaluation, training])
def test_other_words_are_refused(make, capsys):
    with pytest.raises(SystemExit, match="2"):
        make().parse_args(["--kernels.calibrate", "maybe"])
    assert "kernels.calibrate" in capsys.readouterr().err
