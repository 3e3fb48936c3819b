"""No metric changes the type of its sums when the module that holds it is cast, as `bf16-true` does."""

import re
from pathlib import Path

import pytest
import torch

from slms.measure.specialization import Effort
from slms.metrics.activations import CoActivation, Rows, SparsitySums
from slms.metrics.loss import DocumentLoss
from slms.metrics.units import CountLayout, Family, UnitCounts
from slms.sae.quality import CoderQuality

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    CoActivation: lambda: CoActivation(3),
    CoderQuality: lambda: CoderQuality(3, 5),
    DocumentLoss: DocumentLoss,
    Effort: Effort,
    Rows: Rows,
    SparsitySums: lambda: SparsitySums(torch.ones(3)),
    UnitCounts: lambda: UnitCounts(CountLayout({"pos": Family(4)}), 3, together=True),
}


def test_every_metric_has_an_example():
    """A metric of ours is one of `Sums`."""
    text = "".join(path.read_text() for path in (ROOT / "slms").rglob("*.py"))
    assert re.findall(r"class (\w+)\([^)]*\bMetric\b", text) == ["Sums"]
    assert sorted(re.findall(r"class (\w+)\(Sums\)", text)) == [kind.__name__ for kind in EXAMPLES]


def types(metric):
    """Those of the sums; a list of rows has none before its first."""
    states = {name: getattr(metric, name) for name in metric._defaults}
    return {name: state.dtype for name, state in states.items() if isinstance(state, torch.Tensor)}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.half()])
def test_states_keep_their_types(kind, cast):
    metric = EXAMPLES[kind]()
    before = types(metric)
    cast(torch.nn.ModuleList([metric]))
    assert types(metric) == before
    metric.reset()
    assert types(metric) == before


def test_states_move():
    assert DocumentLoss().to("meta").nll.is_meta
