"""Measures trained routers beside their controls, on one sample of tokens whose hidden states are those of the model.

Shapes: n tokens (b·t), d model, p pathways, g document groups, s seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slms.data.text import Blocks
from slms.measure.choice_losses import choice_rows
from slms.measure.classes import OF_DOCUMENTS, TextClasses
from slms.measure.controls import CONTROLS, RANDOM_ROUTER, ControlKind, Fitted, fit_control, mismatch
from slms.measure.evidence import Choices, Evidence, Sampled
from slms.measure.metrics import METRICS
from slms.measure.passes import batches, predicted_tokens
from slms.measure.pathways import classes_for, device_of
from slms.measure.rows import Row, finite, row_of
from slms.measure.schema import Control, ControlRow
from slms.metrics.functional import Score, beyond_control, captured_share
from slms.metrics.functional.matching import STEPS
from slms.metrics.units import N_GROUPS, Cells, UnitCounts
from slms.models.contributions import contribution_norms
from slms.models.routed import Routed, record_routes, routed_modules
from slms.models.routed_mlp import RoutedMLP

TOKENS = 8192  # the sd over seeds outweighs that over documents from 4k tokens on (docs/log.md)
LOSS_TOKENS = 4096  # of them, those on which the loss with other choices is measured
LOSS_SEEDS = 3
# Of places with more than `MOST_BY_CLASS` pathways, whose biases take long to find.
FINE_TOKENS = 1024
FINE_STEPS = 8
_MEMORY_BYTES = 2**30  # of inputs that are kept at a time; the model runs again for the other places


class ControlOptions(NamedTuple):
    """How much controls are measured."""

    seeds: int = 5
    """of each control; 0 leaves controls out"""
    tokens: int = TOKENS


class Controlled(NamedTuple):
    """What a sample of tokens tells of routers and their controls."""

    rows: list[Row]
    """of numbers that only the sample has: how much of the output the choices capture, losses with other choices"""
    controls: dict[str, Control]
    """by name, as in `CONTROLS`"""


class Sample(NamedTuple):
    """Tokens [n] and the cells of the tables in which they count, the same for every place and control."""

    classes: TextClasses
    cells: Cells
    groups: Tensor
    """int64 [n], document groups"""
    ids: dict[str, Tensor]
    """int64 [n], as in `Sampled`"""
    documents: dict[str, Tensor]
    """as in `Sampled`"""

    @classmethod
    def of(cls, blocks: Blocks, classes: TextClasses, device: torch.device, predicted: Tensor) -> Sample:
        """The tokens of blocks, padding left out; `predicted` [n] are those that the model predicts after each."""
        assert blocks.doc_ids is not None
        real = blocks.doc_ids >= 0
        found = {"input_ids": blocks.input_ids, "doc_ids": blocks.doc_ids}
        found |= {f"labels_{family}": classes for family, classes in blocks.labels.items()}
        columns = {
            name: torch.from_numpy(column[real].astype("int64"))[None].to(device) for name, column in found.items()
        }
        after = np.full(blocks.input_ids.shape, -1)
        after[:, :-1] = np.where(real[:, 1:], blocks.input_ids[:, 1:].astype(np.int64), -1)
        following = torch.from_numpy(after[real]).to(device)
        ids = {"input": columns["input_ids"][0], "next": following, "predicted": predicted}
        documents = {family: columns[f"labels_{family}"][0] for family in OF_DOCUMENTS if family in blocks.labels}
        return cls(classes, classes.cells(columns), columns["doc_ids"][0] % N_GROUPS, ids, documents)


class Router(NamedTuple):
    """One place's router at the tokens of a sample."""

    module: Routed
    x: Tensor
    """[n, d] fp32, the input of the module and of its router"""
    chosen: Tensor
    """bool [n, p]"""


Numbers = dict[tuple[str, str], Score]
"""(metric, family) → the number"""


class Compared(NamedTuple):
    """A router beside its controls."""

    own: Numbers
    rows: dict[str, list[ControlRow]]
    """by control"""
    errors: dict[str, float]
    """by control, the largest relative error of a pathway's load"""
    fitted: dict[str, list[Fitted]]
    """by control, one a seed"""


@torch.no_grad()
def measure_controls(
    model: PreTrainedModel,
    blocks: Blocks,
    batch_size: int,
    given_token: Sequence[str] = (),
    options: ControlOptions = ControlOptions(),  # noqa: B008  immutable
) -> Controlled:
    """Measure every routed place beside every control, on blocks that are spread evenly over the text."""
    modules = routed_modules(model)
    if not modules or not options.seeds:
        return Controlled([], {})
    training = model.training
    model.eval()
    part = spread(blocks, options.tokens)
    classes = classes_for(modules, part, given_token)
    kinds = CONTROLS
    if not classes.layout.families:  # only losses are compared, with random routers
        options = ControlOptions(min(options.seeds, LOSS_SEEDS), min(options.tokens, FINE_TOKENS))
        part, kinds = spread(part, options.tokens), {RANDOM_ROUTER: CONTROLS[RANDOM_ROUTER]}
    sample = Sample.of(part, classes, device_of(model), predicted_tokens(model, part, batch_size))
    rows: list[Row] = []
    found: dict[str, Compared] = {}
    for place, router in _routers(model, modules, part, batch_size):
        found[place] = compare_router(place, router, sample, options.seeds, kinds)
        rows += [row_of(place, *key, score) for key, score in found[place].own.items() if METRICS[key[0]].sampled]
    random = [
        {place: one.fitted[RANDOM_ROUTER][seed] for place, one in found.items()}
        for seed in range(min(LOSS_SEEDS, options.seeds))
    ]
    if all(module.config.gate != "relu" for module in modules.values()):  # no other choice can run
        rows += choice_rows(model, spread(part, LOSS_TOKENS), batch_size, random)
    model.train(training)
    controls = {
        name: Control(
            kind.meaning,
            min(options.seeds, kind.most_seeds),
            len(sample.groups),
            [row for one in found.values() for row in one.rows[name]],
            max(one.errors[name] for one in found.values()),
        )
        for name, kind in kinds.items()
    }
    return Controlled(rows, controls)


@torch.no_grad()
def compare_router(
    place: str, router: Router, sample: Sample, seeds: int, kinds: Mapping[str, ControlKind] = CONTROLS
) -> Compared:
    """Measure each number that `METRICS` compares, for a router's choices and for those of each control and seed.

    All are measured on the same tokens with the same tables, so that differences are paired by document.
    """
    norms = contribution_norms(router.module)(router.x) if isinstance(router.module, RoutedMLP) else None
    own = _numbers(place, router, router.chosen, norms, sample)
    found = Compared(own, {}, {}, {})
    steps = STEPS if sample.classes.layout.families else FINE_STEPS
    for name, kind in kinds.items():
        fitted = [
            fit_control(kind, router.module, router.x, router.chosen, s, steps)
            for s in range(min(seeds, kind.most_seeds))
        ]
        choices = [one.choose(router.x, router.chosen) for one in fitted]
        found.fitted[name] = fitted
        found.errors[name] = max(mismatch(chosen, router.chosen) for chosen in choices)
        numbers = [_numbers(place, router, chosen, norms, sample) for chosen in choices]
        found.rows[name] = _control_rows(place, own, numbers)
    return found


def spread(blocks: Blocks, n_tokens: int) -> Blocks:
    """At most `n_tokens` tokens (at least one block), as blocks that are spread evenly over the text."""
    n = min(len(blocks.input_ids), max(1, n_tokens // blocks.input_ids.shape[1]))
    rows = np.linspace(0, len(blocks.input_ids) - 1, n).round().astype(int)
    assert blocks.doc_ids is not None
    labels = {family: classes[rows] for family, classes in blocks.labels.items()}
    return blocks._replace(input_ids=blocks.input_ids[rows], doc_ids=blocks.doc_ids[rows], labels=labels)


def _routers(
    model: PreTrainedModel, modules: Mapping[str, Routed], blocks: Blocks, batch_size: int
) -> Iterator[tuple[str, Router]]:
    """Read the inputs and choices of as many places at a time as memory allows."""
    group = max(1, _MEMORY_BYTES // (4 * blocks.input_ids.size * model.config.hidden_size))
    names = list(modules)
    for start in range(0, len(names), group):
        taken = names[start : start + group]
        inputs: dict[str, list[Tensor]] = {place: [] for place in taken}
        chosen: dict[str, list[Tensor]] = {place: [] for place in taken}
        for batch in batches(blocks, batch_size):
            real = (batch["doc_ids"].flatten() >= 0).to(device_of(model))
            with record_routes(model) as routes, _inputs(modules, taken) as found:
                model.base_model(batch["input_ids"].to(device_of(model)), use_cache=False)
            for place in taken:
                inputs[place].append(found[place].flatten(0, -2)[real].float())
                chosen[place].append(routes[place].chosen[real])
        for place in taken:
            yield place, Router(modules[place], torch.cat(inputs.pop(place)), torch.cat(chosen.pop(place)))


@contextmanager
def _inputs(modules: Mapping[str, Routed], places: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that every forward pass fills with the inputs [b, t, d] of these places."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for place in places:

            def hook(_: nn.Module, inputs: tuple, place: str = place) -> None:
                found[place] = inputs[0]

            stack.callback(modules[place].register_forward_pre_hook(hook).remove)
        yield found


def _numbers(place: str, router: Router, chosen: Tensor, norms: Tensor | None, sample: Sample) -> Numbers:
    """Every number that `METRICS` compares, of choices [n, p]."""
    by_class = bool(sample.classes.layout.families)
    counts = UnitCounts(sample.classes.layout, chosen.shape[1], together=by_class).to(chosen.device)
    counts.distributed_available_fn = lambda: False  # one process measures by itself
    counts.update(chosen, sample.cells)
    shared = router.module.config.n_shared
    captured = None if norms is None else (captured_share(norms[:, shared:], chosen[:, shared:]), sample.groups)
    sampled = Sampled(chosen, sample.groups, sample.ids, sample.documents) if by_class else None
    evidence = Choices(place, counts, router.module.offsets, captured=captured, sampled=sampled)
    numbers: Numbers = {}
    for name, metric in METRICS.items():
        if metric.compared and metric.of in (Choices, Evidence) and metric.measure is not None:
            found = metric.measure(evidence)
            found = found if isinstance(found, dict) else {"": found}
            numbers |= {(name, family): score for family, score in found.items()}
    return numbers


def _control_rows(place: str, own: Numbers, found: Sequence[Numbers]) -> list[ControlRow]:
    rows = []
    for (metric, family), score in own.items():
        of_control = [numbers[metric, family] for numbers in found]
        left_out = [one.left_out for one in of_control if one.left_out is not None]
        if score.left_out is None or len(left_out) < len(of_control):
            continue  # the sample tells nothing
        values = torch.tensor([one.value for one in of_control])
        beyond = beyond_control(score.value, score.left_out, values, torch.stack(left_out))
        rows.append(ControlRow(place, metric, family, *map(finite, beyond)))
    return rows
