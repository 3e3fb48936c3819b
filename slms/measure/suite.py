"""Measures specialization across a scaling suite, and decides by a rule whether it rises.

The rule was written before any suite was measured:

1. The neurons of every MLP of each model are measured on the same text; each number is a mean over layers:
   AS           Gini coefficient of the contributions |a_i|·‖w_out,i‖ of a token's neurons;
   SI pos       specialization index against the part of speech, chance subtracted;
   SI semantic  the same against the semantic class;
   Q            modularity of the co-activation graph minus that of token-shuffled neurons.
   A neuron counts as on at its own strongest tenth of the tokens, so that the rate is the same at every size.
2. The same numbers are measured for each model with random weights.
3. Each number is regressed on log10 of the parameters without embeddings, by least squares. The slope's 95 % interval
   is Student's at n − 2 degrees of freedom, so the scatter between models widens it. Models of one size (seeds; added
   with them) are one point, their mean, because copies of a size do not make more sizes lie on a line.
4. Verdict: `rises` if the interval of the slope lies above 0 for the trained models and also for the difference
   trained − random, `falls` if both lie below 0, else `no trend`. Fewer than three models have no verdict. Each number
   is judged by itself at 95 %, so four independent numbers without a trend show at least one in 18 % of suites.

`no trend` is a result. It says that these models do not show one, not that there is none.

Shapes: m models.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.passes import document_loss
from slms.measure.rows import MEAN, Row, beside, mean_rows
from slms.measure.specialization import measure_units
from slms.measure.units import NeuronReader
from slms.metrics.functional.trend import Trend, trend
from slms.models.base import random_twin

NUMBERS = {"AS": ("sparsity", "gini"), "SI pos": ("si", "pos"), "SI semantic": ("si", "semantic"), "Q": ("q", "")}
"""The four numbers of the rule, with the metric and family of their rows."""


class SuiteModel(NamedTuple):
    """One model of a suite."""

    model: str
    parameters: int
    """number of parameters without embeddings"""
    total_parameters: int
    d_model: int
    n_layers: int
    nats: float
    """loss per token on the same text"""
    tokens: int
    rows: dict[str, Row]
    """by number, means over layers, with the null subtracted from Q too; the control has random weights"""


def parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Number of parameters without and with token and position embeddings (and an untied head)."""
    total = sum(p.numel() for p in model.parameters())
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    tables += [] if head is None else [head.weight]
    return total - sum(table.numel() for table in {id(t): t for t in tables}.values()), total


def measure_model(
    name: str,
    model: PreTrainedModel,
    blocks: Blocks,
    batch_size: int = 16,
    n_nulls: int = 10,
) -> SuiteModel:
    """Do steps 1 and 2 of the rule for one model."""
    if missing := {"pos", "semantic"} - set(blocks.label_names):
        raise ValueError(f"the text has no labels of the family {sorted(missing)[0]!r}, which the suite needs")
    found = {}
    for kind, net in (("trained", model), ("random weights", random_twin(model))):
        called = f"{name}, {kind}"
        reader = NeuronReader(net, blocks, name=called)
        measured = measure_units(reader, blocks, batch_size, ["pos", "semantic"], n_nulls=n_nulls, name=called)
        found[kind] = [_without_null(row) for row in mean_rows(measured.rows)]
    means = {row.key: row for row in beside(found["trained"], found["random weights"])}
    without, total = parameters(model)
    loss = document_loss(model, blocks, batch_size).compute()
    return SuiteModel(
        model=name,
        parameters=without,
        total_parameters=total,
        d_model=model.config.hidden_size,
        n_layers=model.config.num_hidden_layers,
        nats=loss.value,
        tokens=loss.n,
        rows={number: means.get((MEAN, *key), Row(MEAN, *key)) for number, key in NUMBERS.items()},
    )


def _without_null(row: Row) -> Row:
    """Subtract the null from a row of Q, which is measured with its null in it."""
    if row.metric != "q" or row.null_mean is None:
        return row
    value, low, high = (None if x is None else x - row.null_mean for x in (row.value, row.low, row.high))
    return replace(row, value=value, low=low, high=high)


class Verdict(NamedTuple):
    """The result of steps 3 and 4 of the rule for one number; slopes are per decade of parameters."""

    metric: str
    slope: float
    low: float
    high: float
    difference_slope: float
    """slope of trained − random"""
    difference_low: float
    difference_high: float
    verdict: str


def verdicts(models: Sequence[SuiteModel]) -> list[Verdict]:
    """The verdict on each number."""
    found = []
    for number in NUMBERS:
        trained, difference = (trend_of(models, number, minus) for minus in (False, True))
        verdict = trained.verdict if trained.verdict == difference.verdict else "no trend"
        found.append(Verdict(number, *trained[:3], *difference[:3], verdict))
    return found


def trend_of(models: Sequence[SuiteModel], number: str, minus_random: bool) -> Trend:
    """Fit a number over log10 of the parameters; models of one size are one point, their mean."""
    of_size: dict[int, list[float]] = {}
    for m in models:
        row = m.rows[number]
        value = torch.nan if row.value is None else row.value
        of_size.setdefault(m.parameters, []).append(value - ((row.control or 0.0) if minus_random else 0.0))
    x: Tensor = torch.tensor(list(of_size), dtype=torch.float64).log10()
    return trend(x, torch.tensor([sum(y) / len(y) for y in of_size.values()], dtype=torch.float64))
