"""Measures the numbers of a results file in one pass over the blocks, the same for training and eval.py.

Shapes: b blocks, t position, n tokens (b·t), u pathways, c classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slms.data.text import Blocks
from slms.measure.classes import (
    MOST_BY_CLASS,
    TOKEN,
    TextClasses,
    distinctive,
    divergence_terms,
    labels_of,
    token_texts,
)
from slms.measure.evidence import Choices
from slms.measure.metrics import BY_CLASS, rows_of
from slms.measure.passes import batches, token_nats
from slms.measure.rows import Row, finite, row_of
from slms.measure.schema import Labels, Pathway, Token
from slms.metrics.loss import DocumentLoss
from slms.metrics.units import UnitCounts
from slms.models.routed import Routed, record_routes, routed_modules
from slms.routing import GateSelector, Routes

TOP_TOKENS = 10  # the prototype lists as many
WORD_CLASSES = "pos"
"""The label family of word classes."""


class Tabulated(NamedTuple):
    """The rows and pathways that the count tables of all places give."""

    rows: list[Row]
    pathways: dict[str, list[Pathway]]
    """by place"""


def classes_for(modules: Mapping[str, Routed], blocks: Blocks, given_token: Sequence[str] = ()) -> TextClasses:
    """The classes by which the choices of modules are counted: none if one has more than `MOST_BY_CLASS` pathways."""
    if any(module.config.n_pathways > MOST_BY_CLASS for module in modules.values()):
        return TextClasses(blocks, families=())
    return TextClasses(blocks, given_token=given_token, tokens=True)


class PathwayTables:
    """Counts, for every routed module, the classes of each pathway's tokens, from the routes of each forward pass.

    Args:
        modules: the routed modules by place.
        blocks: the text to measure; it gives the label families, and its distinct tokens are classes too. If a place
            has more than `MOST_BY_CLASS` pathways, only loads are counted.
        given_token: families whose SI is also computed given the token; slow, for final measurements.
        alone: whether one rank counts everything by itself, instead of every rank its share.
    """

    def __init__(
        self, modules: Mapping[str, Routed], blocks: Blocks, given_token: Sequence[str] = (), alone: bool = False
    ):
        self.classes = classes_for(modules, blocks, given_token)
        coarse = bool(self.classes.layout.families)
        self._texts: list[str] = []
        self.offsets = {place: module.offsets for place, module in modules.items()}
        self.by_gate = {place for place, module in modules.items() if isinstance(module.router, GateSelector)}
        self.counts = {
            place: UnitCounts(self.classes.layout, module.config.n_pathways, together=coarse).to(device_of(module))
            for place, module in modules.items()
        }
        if alone:
            for counts in self.counts.values():
                counts.distributed_available_fn = lambda: False

    def update(self, routes: Mapping[str, Routes], batch: Mapping[str, Tensor]) -> None:
        """Add the tokens of one batch; routes are flattened to [b·t], batch entries are [b, t]."""
        cells = self.classes.cells(batch)
        for place, counts in self.counts.items():
            counts.update(routes[place].chosen, cells)

    def reset(self) -> None:
        """Forget all tokens."""
        for counts in self.counts.values():
            counts.reset()

    def compute(self, tokenizer: PreTrainedTokenizerBase | None) -> Tabulated:
        """The rows and pathways of every place. Under DDP they cover all ranks' tokens, so every rank calls this."""
        if self.classes.token_ids is not None:
            self._texts = self._texts or token_texts(tokenizer, self.classes.token_ids.tolist())
        found = Tabulated([], {})
        for place, counts in self.counts.items():
            with counts.sync_context():
                choices = Choices(place, counts, self.offsets[place], by_gate=place in self.by_gate)
                found.rows.extend([*rows_of(choices), *word_class_rows(choices, self.classes.label_names)])
                if choices.by_class:
                    found.pathways[place] = describe_pathways(choices, self._texts, self.classes.label_names)
        return found


class Measurement(NamedTuple):
    """The numbers that one pass over the text yields."""

    loss: DocumentLoss
    rows: list[Row]
    pathways: dict[str, list[Pathway]]
    labels: dict[str, Labels]
    kl: DocumentLoss | None = None
    """KL(base ‖ model), if there is a base"""
    through: Mapping[str, float] | None = None
    """the share of the executed neurons that go through W_out, of places with a second choice; None if none has"""

    @property
    def densities(self) -> dict[str, float]:
        """The share of units executed, by place."""
        return {row.place: row.value for row in self.rows if row.metric == "density" and row.value is not None}


@torch.inference_mode()
def measure_pathways(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    blocks: Blocks,
    batch_size: int,
    given_token: Sequence[str] = (),
    base: PreTrainedModel | None = None,
) -> Measurement:
    """Measure, over all `blocks`, the loss by document and what the pathways of every routed module serve.

    Args:
        blocks: validation blocks, with documents and labels.
        batch_size: blocks in one forward pass.
        given_token: as in `PathwayTables`.
        base: the dense model whose predictions the model should keep; null measures no KL.
    """
    device, was_training = device_of(model), model.training
    tables = PathwayTables(routed_modules(model), blocks, given_token, alone=True)
    loss, kl = DocumentLoss().to(device), DocumentLoss().to(device)
    model.eval()
    twice: dict[str, list[Tensor]] = {}
    for batch in batches(blocks, batch_size):
        batch = {name: column.to(device) for name, column in batch.items()}
        with record_routes(model) as routes:
            nats = token_nats(model, batch["input_ids"], base)
        documents = batch["doc_ids"][:, 1:].flatten()
        loss.update(nats.nll.flatten(), documents)
        if nats.kl is not None:
            kl.update(nats.kl.flatten(), documents)
        tables.update(routes, batch)
        for place, found in routes.items():
            if found.through is not None:
                twice.setdefault(place, []).append(torch.stack([found.through.sum(), found.chosen.sum()]).double())
    model.train(was_training)
    sums = {place: torch.stack(counts).sum(0).tolist() for place, counts in twice.items()}
    through = {place: kept / max(ran, 1.0) for place, (kept, ran) in sums.items()}
    own = None if base is None else kl.cpu()
    return Measurement(loss.cpu(), *tables.compute(tokenizer), labels_of(blocks), own, through or None)


def word_class_rows(choices: Choices, label_names: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """Rows of the pathways that a token of each word class executes on average; none if every class has as many."""
    if WORD_CLASSES not in label_names or WORD_CLASSES not in choices.counts.layout.families:
        return []
    chosen, tokens = (table.sum(0).cpu().double() for table in choices.counts.tables(WORD_CLASSES))
    per_token = chosen.sum(0) / tokens
    known = [i for i in range(len(tokens)) if tokens[i] > 0]
    if not known or per_token[known].max() - per_token[known].min() < 1e-9:
        return []
    names = label_names[WORD_CLASSES]
    return [row_of(choices.place, BY_CLASS, names[i], float(per_token[i]), int(tokens[i])) for i in known]


def describe_pathways(
    choices: Choices, texts: Sequence[str], label_names: Mapping[str, tuple[str, ...]]
) -> list[Pathway]:
    """Describe each pathway by its load, purities, most distinctive tokens and share of every class.

    Args:
        texts: the text of every class of the family `token`.
        label_names: family → class names.
    """
    counts, totals = (table.sum(0).cpu().double() for table in choices.counts.tables(TOKEN))
    profiles = {family: choices.counts.tables(family)[0].sum(0).cpu().double() for family in label_names}
    return [
        Pathway(
            index=p,
            tokens=int(choices.counts.uses[p]),
            load=float(choices.used.load[p]),
            purity=finite(choices.purity.units[p]),
            purity_legacy=finite(choices.purity_legacy[p]),
            entropy=finite(choices.entropy[p]),
            top_tokens=_top_tokens(counts[p], totals, texts),
            profile={
                family: profile
                for family, names in label_names.items()
                if (profile := _profile(profiles[family][p], names))
            },
        )
        for p in range(choices.counts.n_units)
    ]


def _top_tokens(counts: Tensor, totals: Tensor, texts: Sequence[str]) -> list[Token]:
    """The tokens that contribute most to KL(p(t | pathway) ‖ p(t)): frequent here, and more so than elsewhere."""
    lift = divergence_terms(counts, totals).lift
    return [Token(texts[i], int(counts[i]), float(lift[i])) for i in distinctive(counts, totals, TOP_TOKENS)]


def _profile(counts: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """p(class | pathway) of the classes that occur, the commonest first."""
    total = counts.sum()
    order = counts.argsort(descending=True, stable=True).tolist()
    return {names[i]: float(counts[i] / total) for i in order if counts[i] > 0}


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters."""
    return next(module.parameters()).device
